"""Follows the tokens of one job: in order, none lost, none twice, whatever of them came how.

Pieces are heard as they are published; what was not heard (the client came late, or did not read) is read from the
job's stream in Redis. An attempt that follows another begins the answer anew.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from models import streams
from models.streams import START, EventId, Piece
from stoker.settings import Settings
from webapi.waiters import Waiter, Waiters

log = structlog.get_logger("stoker.web")

PATIENCE = 5.0
"""Seconds that Redis may be away before a stream that has begun is given up."""
MOST_CONNECTIONS = 8
QUEUE_FOR = 15.0
"""Seconds to wait for one of them: when thousands have missed something, that is no sign of a Redis that is away."""
_MOST_ENTRIES = 500


@dataclass(frozen=True, slots=True)
class Token:
    """An event of the endpoint's own stream."""

    id: EventId
    event: str


@dataclass(frozen=True, slots=True)
class Restart:
    """The job is run again from its beginning: what came so far counts no more."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Tokens are missing and cannot be had any more."""

    why: str


Step = Token | Restart | Lost


class Recorded:
    """The streams as Redis has them. Few connections, shared by all requests of the process."""

    def __init__(self, settings: Settings) -> None:
        pool = redis.BlockingConnectionPool.from_url(
            settings.redis_client_url,
            max_connections=MOST_CONNECTIONS,
            timeout=QUEUE_FOR,
            socket_timeout=2,
            socket_connect_timeout=1,
            retry=Retry(NoBackoff(), 1),  # for a connection that has died unseen
        )
        self._redis = redis.Redis(connection_pool=pool)

    def after(self, job_id: str, position: EventId) -> tuple[list[Piece], bool]:
        """Return the first pieces that hold events behind a position, and whether there are more of them.

        Raises redis.RedisError and OSError.
        """
        entries: Any = self._redis.xrange(streams.key(job_id), f"({position}", count=_MOST_ENTRIES)
        pieces = (streams.decode_one(fields.get(streams.FIELD, b"")) for _, fields in entries)
        return [piece for piece in pieces if piece is not None], len(entries) == _MOST_ENTRIES

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


class Follower:
    """What one client has got of one job's stream."""

    def __init__(
        self, waiters: Waiters, recorded: Recorded, waiter: Waiter, job_id: str, after: EventId | None = None
    ) -> None:
        """Begin behind an event that the client has; None: with the first one that comes."""
        self._waiters = waiters
        self._recorded = recorded
        self._waiter = waiter
        self._job_id = job_id
        self._position = after or START
        self._trouble_since: float | None = None
        self.whole = False
        """Whether the answer of the newest attempt has come to its end."""

    @property
    def position(self) -> EventId:
        """Return the last event that was taken."""
        return self._position

    def take(self, *, look: bool = False) -> list[Step]:
        """Return what has come since the last call, without waiting; with `look` also what Redis alone has.

        Where there is very much of it, the next call has more.
        """
        heard = deque(self._waiter.take())
        steps: list[Step] = []
        if not (look or self._waiter.missed):
            self._sort_in(heard, steps)
            if not heard:
                return steps
        # Here when heard pieces are missing before the first that is left.
        if (lost := self.deaf()) is not None:
            # Not tried: where thousands try in turn, the last would learn it after minutes.
            self._sort_in(heard, steps)
            return [*steps, lost]
        self._waiter.missed = False
        try:
            recorded, more = self._recorded.after(self._job_id, self._position)
        except (redis.RedisError, OSError) as error:
            return self._troubled(error, heard, steps)
        self._trouble_since = None
        if more:
            # What was heard is recorded, too: it is read in its turn.
            self._waiter.missed = True
            heard.clear()
        known = sorted([*recorded, *heard], key=lambda piece: (piece.attempt, piece.first))
        self._sort_in(deque(known), steps, gaps=True)
        return steps

    def deaf(self) -> Lost | None:
        """Say that the stream is lost if Redis has been away for too long."""
        if self._waiters.deaf_for() > PATIENCE:
            return Lost("the tokens on their way were lost: Redis does not answer")
        return None

    def _sort_in(self, pieces: deque[Piece], steps: list[Step], *, gaps: bool = False) -> None:
        """Add what pieces bring, and take them away; up to the first gap, or over it."""
        while pieces:
            piece = pieces[0]
            if piece.attempt > self._position.attempt:
                if self._position.seq:
                    steps.append(Restart(piece.attempt))
                self._position, self.whole = EventId(piece.attempt, 0), False
            if piece.attempt == self._position.attempt and not self.whole:
                if piece.first > self._position.seq + 1:
                    if not gaps:
                        return
                    steps.append(Lost("some of the tokens were lost on their way: Redis has forgotten them"))
                steps += self._deliver(piece)
            pieces.popleft()

    def _deliver(self, piece: Piece) -> list[Step]:
        steps: list[Step] = []
        for seq, event in enumerate(piece.events, piece.first):
            if seq <= self._position.seq or self.whole:
                continue
            self._position = EventId(piece.attempt, seq)
            if event == streams.END:
                self.whole = True
            else:
                steps.append(Token(self._position, event))
        return steps

    def _troubled(self, error: Exception, heard: deque[Piece], steps: list[Step]) -> list[Step]:
        """Go on as far as can be without Redis, and try again soon; after a while say that the stream is lost."""
        log.info("tokens cannot be read", kind=type(error).__name__)
        self._sort_in(heard, steps)
        now = time.monotonic()
        self._trouble_since = self._trouble_since or now
        if now - self._trouble_since > PATIENCE:
            self._trouble_since = None
            steps.append(Lost("the tokens cannot be read: Redis does not answer"))
        else:
            self._waiter.missed = True
        return steps
