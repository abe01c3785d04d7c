"""Requests that wait for something to happen to a job: one hub a process, and nothing held for each but a thread.

Two ways to hear of it: what workers publish in Redis (ends, tokens), at once; and one query a second over all jobs that
are waited for, which is enough for ends and states without Redis.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from socket import socket

import structlog

from models import views
from models.db import Database
from models.errors import DatabaseUnavailable
from models.states import JOB
from models.streams import Piece
from stoker.settings import Settings
from webapi.caller import Caller, current
from webapi.errors import Problem
from webapi.hangups import Hangups
from webapi.streams_of_keys import StreamsOfKeys
from webapi.subscription import Subscription
from webapi.waking import Waking

log = structlog.get_logger("stoker.web")

LOOK_EVERY = 1.0
SPARE = 64
"""Threads of a process that are not for waiting, or half of them where there are few."""
TURNS = 4
"""Requests at once that look, or use the database before or after they wait: when a thousand come, or their jobs end
together, whoever submits still finds a connection and the interpreter."""
TURN_WITHIN = 30.0
"""Seconds after which a database that nobody gets to counts as away."""
MOST_UNREAD = 1_000_000
"""Bytes of tokens kept for a client that does not read; the rest it gets from Redis when it does."""


class TooManyWaiters(Problem):
    """All places for those who wait are taken: 503."""

    def __init__(self, why: str) -> None:
        super().__init__(503, "too_many_waiters", why, headers={"Retry-After": "1"})


class Waiter:
    """One request that waits. Its fields are set by the hub, from any thread; `woken` says that one has changed."""

    def __init__(self, *, tokens: bool = False, states: bool = False) -> None:
        self.woken = threading.Event()
        self.wants_tokens = tokens
        self.wants_states = states
        self.state = ""
        self.may_have_ended = False
        self.gone = False
        self.missed = False
        self.pieces: deque[Piece] = deque()
        self.waking: Waking | None = None
        self._known_at = 0.0
        self._sleeping = False
        self._unread = 0

    def wait(self, seconds: float) -> None:
        """Wait until something has changed, or the seconds have passed."""
        self._sleeping = True
        if self.waking is not None:
            self.waking.asleep(self.woken.set)
        self.woken.wait(max(0.0, seconds))
        self._sleeping = False
        self.woken.clear()

    def hang_up(self) -> None:
        """Note that the client is gone."""
        self.gone = True
        self._wake()

    def end(self) -> None:
        """Note that the job may have ended."""
        self.may_have_ended = True
        self._wake()

    def know(self, state: str) -> None:
        """Note the state as it is now: said by who waits, who has looked or has got a token."""
        self.state, self._known_at = state, time.monotonic()

    def see(self, state: str, at: float) -> None:
        """Note a state as it was at a time; one from before what is known is passed over, for it would go back."""
        if state in JOB.final:
            self.end()
        if at < self._known_at:
            return
        changed, self.state = state != self.state, state
        if changed and self.wants_states:
            self._wake()

    def hear(self, piece: Piece) -> None:
        """Take a piece of the stream; what is too much to keep is `missed`, to be read from Redis."""
        self._unread += sum(map(len, piece.events))
        if self._unread > MOST_UNREAD:
            self.pieces.clear()
            self.missed = True
        else:
            self.pieces.append(piece)
        self._wake()

    def miss(self) -> None:
        """Note that pieces may have gone by unheard."""
        self.missed = True
        self._wake()

    def take(self) -> list[Piece]:
        """Return the pieces that came since the last call."""
        self._unread = 0
        taken = []
        # Not `while self.pieces`: the hub may drop them all in between.
        with suppress(IndexError):
            while True:
                taken.append(self.pieces.popleft())
        return taken

    def _wake(self) -> None:
        # Who is awake looks before it sleeps again. To count it anew at each token would let a few whose clients do not
        # read keep all others asleep.
        if self.waking is None or not self._sleeping:
            self.woken.set()
        else:
            self.waking.wake(self.woken.set)


class Waiters:
    """Wakes requests when something may have happened to their job. `stop` wakes all, for the process is to end."""

    def __init__(self, settings: Settings, database: Database) -> None:
        # However many may wait, some threads are left for those who look or submit.
        self._most = min(settings.max_waiters, settings.web_threads - min(SPARE, settings.web_threads // 2))
        self._database = database
        self._subscription = Subscription(settings, self._ended, self._heard, self._missed)
        self._hangups = Hangups()
        self._waking = Waking()
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(TURNS)
        self._waiting: dict[str, set[Waiter]] = {}
        self._count = 0
        self._of_keys = StreamsOfKeys()
        self._pid = 0
        self._to_start: list[Callable[[], None]] = []
        self._anybody = threading.Event()
        self.stopping = False

    @contextmanager
    def place(self, waiter: Waiter, connection: socket | None = None) -> Iterator[Waiter]:
        """Take one of the places for those who wait, before there is a job. Raises TooManyWaiters, and Problem."""
        caller = current()
        self._take_place(caller)
        waiter.waking = self._waking
        try:
            with self._hangups.watching(connection, waiter.hang_up):
                yield waiter
        finally:
            self._waking.left(waiter.woken.set)
            with self._lock:
                self._count -= 1
                self._of_keys.end(caller)

    @contextmanager
    def following(self, waiter: Waiter, job_id: str) -> Iterator[None]:
        """Let a waiter, which has a place, hear of a job."""
        with self._lock:
            self._waiting.setdefault(job_id, set()).add(waiter)
        self._anybody.set()
        try:
            yield
        finally:
            self._remove(job_id, waiter)

    @contextmanager
    def registered(self, job_id: str, connection: socket | None = None) -> Iterator[Waiter]:
        """Wait for a job's end. Raises TooManyWaiters when too many wait."""
        with self.place(Waiter(), connection) as waiter, self.following(waiter, job_id):
            yield waiter

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn at the database. Raises DatabaseUnavailable when none comes."""
        if not self._turns.acquire(timeout=TURN_WITHIN):
            raise DatabaseUnavailable(f"no turn at the database within {TURN_WITHIN:g} s")
        try:
            yield
        finally:
            self._turns.release()

    def deaf_for(self) -> float:
        """Return for how many seconds Redis has not been heard, 0 while it is."""
        return self._subscription.deaf_for()

    def stop(self) -> None:
        """Wake everybody and let nobody wait again; takes no lock that a signal's handler could meet."""
        self.stopping = True
        self._subscription.stopping = True
        self._anybody.set()
        for waiters in list(self._waiting.values()):
            for waiter in list(waiters):
                waiter.woken.set()

    def _take_place(self, caller: Caller | None) -> None:
        with self._lock:
            self._of_keys.check(caller)
            if self._count >= self._most:
                raise TooManyWaiters(
                    f"This process holds {self._most} waiting requests already (STOKER_MAX_WAITERS, "
                    "STOKER_WEB_THREADS); poll instead, or try again."
                )
            self._start()
            self._count += 1
            self._of_keys.begin(caller)

    def _start(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._to_start = [self._listen, self._look]
        try:
            while self._to_start:
                work = self._to_start[-1]
                threading.Thread(target=work, name=f"waiters{work.__name__}", daemon=True).start()
                self._to_start.pop()
        except RuntimeError as error:
            log.warning("no thread for those who wait")
            raise TooManyWaiters("This process can start no more threads at the moment; poll instead.") from error

    def _remove(self, job_id: str, waiter: Waiter) -> None:
        with self._lock:
            waiters = self._waiting[job_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiting[job_id]
                if not self._waiting:
                    self._anybody.clear()

    def _of(self, job_ids: Iterable[str]) -> list[tuple[str, Waiter]]:
        with self._lock:
            return [(job_id, waiter) for job_id in job_ids for waiter in self._waiting.get(job_id, ())]

    def _ended(self, job_ids: Sequence[str]) -> None:
        for _, waiter in self._of(job_ids):
            waiter.end()

    def _heard(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            for _, waiter in self._of([piece.job]):
                if waiter.wants_tokens:
                    waiter.hear(piece)

    def _missed(self) -> None:
        with self._lock:
            everybody = [waiter for waiters in self._waiting.values() for waiter in waiters]
        for waiter in everybody:
            waiter.may_have_ended = True
            waiter.miss()

    def _listen(self) -> None:
        self._subscription.run()

    def _look(self) -> None:
        while True:
            self._anybody.wait()
            if self.stopping:
                return
            time.sleep(LOOK_EVERY)
            with self._lock:
                ids = list(self._waiting)
            if not ids:
                continue
            try:
                self._look_for(ids)
            except DatabaseUnavailable as error:
                log.warning("cannot look for ended jobs", reason=str(error))
            except Exception as error:  # the thread's edge: without it nobody hears of an end any more
                log.exception("cannot look for ended jobs", error=type(error).__name__)

    def _look_for(self, ids: Sequence[str]) -> None:
        asked = time.monotonic()
        with self._database.reading() as tx:
            states = views.states(tx, ids)
        for job_id, waiter in self._of(ids):
            if (state := states.get(job_id)) is None:
                waiter.end()  # deleted
            else:
                waiter.see(state, asked)
