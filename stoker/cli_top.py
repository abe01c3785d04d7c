"""`stoker top`: what the queue and the engines do, looked at again and again."""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stoker.cli_http import duration, print_json, service
from stoker.console import URL, JsonOption, KeyOption, UrlOption, examples, fail, is_terminal, say, word

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from stoker.client import Client
    from stoker.overview_feed import Feed, Look
    from stoker.steps import Call
    from stoker.text_table import Line

app = typer.Typer()

_EARLY, _REDRAW = 0.1, 1.0
"""Seconds until the screen is drawn again: before there is anything to show, and then."""
_NARROWEST, _LOWEST = 20, 3
_QUIT = frozenset("qQ\x04")

Minutes = Literal["15", "60", "360", "1440", "10080"]


@app.command(
    epilog=examples(
        "stoker top",
        "stoker top --once --url http://127.0.0.1:8000",
        "stoker top --json --once | jq '.queue[] | {model, lane, queued}'",
    )
)
def top(
    *,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds from one look to the next.")] = 2.0,
    minutes: Annotated[Minutes, typer.Option(help="How far the curve and the failures go back.")] = "60",
    once: Annotated[bool, typer.Option("--once", help="Look once, as plain text.")] = False,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch queue, engines, batches, failures and owners.

    q or Ctrl-C ends it. A service that goes away is waited for. Where the output is no terminal it is plain text, one
    look after the other; with --json one document a line. It takes a key with the scope admin to see everything.
    """
    from stoker import calls
    from stoker.overview_feed import Feed
    from stoker.steps import answered

    call = calls.overview(int(minutes))
    if not as_json:
        call = replace(call, read=lambda answer: _showable(calls.overview_of(answer)))
    with service(url, api_key) as client:
        if once:
            _print(client.perform(answered(call)), as_json=as_json)
            return
        feed = Feed(lambda: _look(client, call), interval)
        try:
            if as_json or not is_terminal(sys.stdout) or os.environ.get("TERM") == "dumb":
                _follow(feed, as_json=as_json)
            else:
                _watch(feed, url)
        except KeyboardInterrupt:
            return
        finally:
            feed.end()


def _look(client: Client, call: Call[dict[str, Any]]) -> dict[str, Any]:
    from stoker.steps import answered

    return client.perform(answered(call, tries=1))


def _showable(document: dict[str, Any]) -> dict[str, Any]:
    """Return an overview that can be drawn; that of another version, or of some other server, raises."""
    from stoker import top as overview

    overview.lines(document, _NARROWEST)
    return document


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    from stoker import top as overview
    from stoker.text_table import plain

    if as_json:
        print_json(document)
        return
    width = max(_NARROWEST, shutil.get_terminal_size((100, 0)).columns)
    for line in overview.lines(document, width, glyphs=_glyphs()):
        typer.echo(plain(line))


def _follow(feed: Feed, *, as_json: bool) -> None:
    """Print each look; that the service is away is said once, on the standard error."""
    from stoker.overview_feed import Look

    seen = Look()
    while True:
        found = feed.next(seen)
        if found.refused:
            fail(found.refused)
        if found.away and not seen.away:
            say(f"stoker: {word(found.away)}; waiting for it", err=True)
        elif not found.away and found.document is not None:
            if seen.document is not None and not as_json:
                typer.echo()
            _print(found.document, as_json=as_json)
            sys.stdout.flush()
        seen = found


def _watch(feed: Feed, url: str) -> None:
    """Draw until a key ends it; the terminal is left as it was found."""
    from rich.console import Console
    from rich.live import Live

    from stoker.unwinding import unwinding_at_signals

    console = Console(highlight=False)
    with (
        unwinding_at_signals(),
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live,
    ):
        while True:
            found = feed.last()
            if found.refused:
                break
            live.update(_drawn(console, found, url), refresh=True)
            if _QUIT & pressed(_REDRAW if found.document or found.away else _EARLY):
                return
    fail(found.refused)


def _drawn(console: Console, found: Look, url: str) -> RenderableType:
    """Return the screen."""
    from rich.text import Text

    from stoker import top as overview

    width, height = max(_NARROWEST, console.width), max(_LOWEST, console.height)
    shown = _head(found, url, width)
    if found.document is not None:
        shown += overview.lines(found.document, width, height - len(shown), _glyphs())
    texts = [Text.assemble(*line, no_wrap=True, overflow="crop") for line in shown[:height]]
    return Text("\n", no_wrap=True, overflow="crop").join(texts)


def _head(found: Look, url: str, width: int) -> list[Line]:
    from stoker.api_errors import without_password
    from stoker.text_table import cut

    glyphs = _glyphs()
    if found.away:
        lasts = duration(max(0.0, time.time() - found.since))
        below = f"below: as it was at {_clock(found.at)}" if found.document else "waiting for it; q ends"
        told = [(f"away since {_clock(found.since)} ({lasts})", "bold red"), (found.away, "red"), (below, "dim")]
        return [*(((cut(word(text), width, glyphs), style),) for text, style in told), ()]
    at = "looking" if found.document is None else _clock(found.at)
    return [
        (("stoker top", "bold"), (cut(f"  {at}  {word(without_password(url))}  q ends", width - 10, glyphs), "dim")),
        (),
    ]


def _glyphs() -> Any:
    from stoker.text_table import ASCII, Glyphs

    return Glyphs() if (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" else ASCII


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


@contextmanager
def _keys() -> Iterator[Callable[[float], AbstractSet[str]]]:
    """Yield how to wait so many seconds for keys, and which were pressed. Without a keyboard it only waits."""

    def waits(seconds: float) -> AbstractSet[str]:
        time.sleep(seconds)
        return set()

    def reads(seconds: float) -> AbstractSet[str]:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        # Past the buffer of sys.stdin, which select does not see; nothing at all: the terminal is gone.
        return set(os.read(sys.stdin.fileno(), 64).decode("latin-1") or "\x04") if ready else set()

    if not sys.stdin or not sys.stdin.isatty() or os.name != "posix":
        yield waits
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield reads
    finally:
        with suppress(termios.error, OSError):
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
