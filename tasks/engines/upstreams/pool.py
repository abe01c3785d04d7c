"""The upstreams over time: checked, discovered, added, removed, and given up when they hang."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp
import structlog

from stoker.settings import Settings
from tasks.engines.base import EngineStartError
from tasks.engines.upstreams import answers, listing
from tasks.engines.upstreams.answers import OK
from tasks.engines.upstreams.calls import Call, Caller, reason
from tasks.engines.upstreams.listing import BadListing, Place
from tasks.engines.upstreams.member import Upstream

log = structlog.get_logger(__name__)

TICK = 0.5
"""Seconds between two looks at the file and at what is due."""
_NO_LIST = (404, 405, 501)
_KEY = (401, 402, 403, 407)


class Pool:
    """Keeps `members` up to date; lives on one event loop. `changed` is called whenever somebody may have room."""

    def __init__(self, settings: Settings, members: dict[str, Upstream], changed: Callable[[], None]) -> None:
        """Read the lists. Raises EngineStartError for a file that cannot be used."""
        self._settings = settings
        self._members = members
        self._changed = changed
        self._file = settings.upstreams_file
        self._text: str | None = None
        self._told = ""
        self._calls: dict[Upstream, set[Call]] = {}
        self._checks: dict[Upstream, asyncio.Task[None]] = {}
        self._due = asyncio.Event()
        self._broken: BaseException | None = None
        try:
            self._adopt(self._read())
        except (OSError, BadListing) as error:
            raise EngineStartError(f"STOKER_UPSTREAMS_FILE: {self._file} {_why(error)}") from None

    async def run(self, caller: Caller) -> None:
        """Check upstreams when they are due and read the file when it changed, for ever."""
        while True:
            if self._broken is not None:
                raise self._broken
            await self._reread()
            self._start_checks(caller, time.monotonic())
            self._changed()
            self._due.clear()
            with suppress(TimeoutError):
                # Not `wait_for`: on Python 3.11 it swallows a cancellation that comes together with what it waits for.
                async with asyncio.timeout(TICK):
                    await self._due.wait()

    def first_checks(self, caller: Caller) -> set[asyncio.Task[None]]:
        """Start the first check of every upstream and return them."""
        self._start_checks(caller, time.monotonic())
        return set(self._checks.values())

    async def end(self) -> None:
        """Stop the checks that are under way."""
        checks = list(self._checks.values())
        for task in checks:
            task.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    def hurry(self) -> None:
        """Look at once whether a check is due."""
        self._due.set()

    # Calls, so that those on an upstream that hangs can be given up

    def add(self, upstream: Upstream, call: Call) -> None:
        """Note a call that begins."""
        self._calls.setdefault(upstream, set()).add(call)

    def remove(self, upstream: Upstream, call: Call) -> None:
        """Note a call that ended."""
        calls = self._calls[upstream]
        calls.discard(call)
        if not calls:
            del self._calls[upstream]

    # Checks

    def _start_checks(self, caller: Caller, now: float) -> None:
        for upstream in self._members.values():
            if now >= upstream.check_at and upstream not in self._checks:
                task = asyncio.create_task(self._check(caller, upstream))
                self._checks[upstream] = task
                task.add_done_callback(partial(self._checked, upstream))

    def _checked(self, upstream: Upstream, task: asyncio.Task[None]) -> None:
        del self._checks[upstream]
        if not task.cancelled() and (error := task.exception()):
            self._broken = error
        # A failure in the meantime may have made it due again.
        self.hurry()

    async def _check(self, caller: Caller, upstream: Upstream) -> None:
        began = time.monotonic()
        try:
            status, text = await caller.models(upstream.place, self.patience)
            found, why = _found(upstream.place, status, text)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._missed(upstream, reason(error), began, silent=isinstance(error, TimeoutError))
        else:
            if found is None:
                self._missed(upstream, why, began, silent=False)
            elif upstream.check_passed(time.monotonic(), found):
                log.info("upstream is up", upstream=upstream.url, models=sorted(upstream.models), limit=upstream.limit)
        self._changed()

    def _missed(self, upstream: Upstream, why: str, began: float, *, silent: bool) -> None:
        """Take note of a failed check; an upstream that hangs loses what runs on it."""
        calls = self._calls.get(upstream, set())
        if silent and any(call.signed > began for call in calls):
            # Too busy to answer us is not hung: it answered somebody else in the meantime.
            upstream.check_at = time.monotonic() + self._settings.upstream_check_every
            return
        if upstream.check_failed(time.monotonic(), why, silent=silent):
            log.warning("upstream is down", upstream=upstream.url, reason=why)
        if silent and upstream.hung:
            for call in list(calls):
                # What a client has begun to read is not begun anew: that one may still go on, up to its timeout.
                if not call.emitted and call.signed <= began:
                    call.give_up()

    @property
    def patience(self) -> float:
        """Return the seconds that a check may take."""
        return max(1.0, min(5.0, self._settings.upstream_check_every))

    # The list

    def _read(self) -> str | None:
        return None if self._file is None else Path(self._file).read_text(encoding="utf-8")

    async def _reread(self) -> None:
        """Read the file again; while it cannot be used, what was good last stays."""
        if self._file is None:
            return
        try:
            # The whole of it and not its time: mounted files change in ways that their times do not tell.
            text = await asyncio.to_thread(self._read)
            if text != self._text:
                self._adopt(text)
                log.info("upstreams read again", file=str(self._file), upstreams=list(self._members))
        except (OSError, ValueError) as error:
            if (why := _why(error)) != self._told:
                log.warning("upstreams not read again, the last list stays", file=str(self._file), reason=why)
            self._told = why
        else:
            self._told = ""

    def _adopt(self, text: str | None) -> None:
        """Make `members` what the settings and this text say. Raises BadListing, with nothing changed."""
        key, most = self._settings.upstream_api_key, self._settings.upstream_max_connections
        # The file may name variables: so keys stay out of it.
        own = () if text is None else listing.from_text(text, key, most, os.environ)
        places = listing.merged(listing.from_urls(self._settings.upstreams, key, most), own)
        self._text = text
        for url in self._members.keys() - places.keys():
            self._members.pop(url).removed = True
        for url, place in places.items():
            if url not in self._members:
                self._members[url] = Upstream(place, self._settings.upstream_check_every)
            elif place != self._members[url].place:
                self._members[url].move(place)


def _found(place: Place, status: int, text: bytes) -> tuple[dict[str, int | None] | None, str]:
    """Read the answer to a check: the models, or None and why there are none."""
    if status == OK:
        try:
            return answers.models_in(text), ""
        except ValueError:
            return None, "its /v1/models is no list of models"
    if status in _NO_LIST and place.models is not None:
        return {}, ""
    if status in _NO_LIST:
        return None, f"it has no /v1/models ({status}): name its models in STOKER_UPSTREAMS_FILE"
    if status in _KEY:
        return None, f"it does not accept the API key ({status})"
    return None, f"its /v1/models answered {status}"


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    return f"cannot be used: {error}"
