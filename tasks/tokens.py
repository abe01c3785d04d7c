"""Publishes what engines emit: into each job's stream in Redis, and to the web servers that listen.

One thread writes for all streams of the process, at most every 20 ms; the first event of a stream goes at once. It
never holds an engine up. Redis is not fenced as the database is, so nothing is published under a lease that may have
run out (`holds`); and what cannot be published is kept for a while and tried again, which Redis makes harmless: it
takes an id once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from models import streams
from models.streams import Piece
from stoker.settings import Settings
from tasks import metrics

log = structlog.get_logger(__name__)

EVERY = 0.02
RETRY_AFTER = 0.25
MOST_BYTES = 64_000_000
"""Of events that wait for Redis, altogether: beyond it streams are given up. Their jobs are not: results are stored."""
MOST_AT_ONCE = 2_000_000
"""Of events that are written at once: after an outage not everything, which Redis might not take in time."""
KEEP_AGAIN = 1.0
"""Seconds after which a stream that goes on is kept anew: Redis may have come back without it."""

Holds = Callable[[], bool]


class Stream:
    """The events of one attempt of a job, on their way out."""

    def __init__(self, out: Tokens, job_id: str, attempt: int, holds: Holds) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.holds = holds
        self.waiting: list[str] = []
        self.written = 0
        self.ended = False
        self.closed = False
        self.keep_at = 0.0
        self.first_at = 0.0
        self._out = out

    def emit(self, event: str) -> None:
        """Hand over an event; returns at once."""
        if event:  # an empty one would say that the answer is whole
            self.first_at = self.first_at or time.monotonic()
            # What no encoding carries must not reach the thread that writes for all.
            self._out.add(self, event if event.isascii() else event.encode("utf-8", "replace").decode())

    def end(self) -> None:
        """Say that the answer is whole."""
        self._out.add(self, streams.END)

    def close(self) -> None:
        """Forget what was not published of an attempt that did not come to its end."""
        self._out.close(self)


class Tokens:
    """The streams of one process."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; the thread starts with the first event."""
        # Once more at once, for a connection that has died unseen; after that it is tried again from here.
        once_more = Retry(NoBackoff(), 1)
        self._redis = redis.Redis.from_url(
            settings.redis_client_url, socket_timeout=1, socket_connect_timeout=1, retry=once_more
        )
        self._keep = int(settings.stream_keep)
        self._change = threading.Condition()
        self._waiting: dict[Stream, None] = {}
        self._bytes = 0
        self._new = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def open(self, job_id: str, attempt: int, holds: Holds) -> Stream:
        """Return the stream of an attempt; `holds` tells whether its lease surely has not run out."""
        return Stream(self, job_id, attempt, holds)

    def add(self, stream: Stream, event: str) -> None:
        """Queue an event."""
        with self._change:
            if stream.ended:
                return
            if self._bytes + len(event) > MOST_BYTES:
                self._give_up()
                self._forget(stream)
                return
            self._bytes += len(event)
            stream.waiting.append(event)
            stream.ended = event == streams.END
            self._waiting[stream] = None
            self._new = self._new or stream.written == 0 or stream.ended
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tokens", daemon=True)
                self._thread.start()
            self._change.notify()

    def close(self, stream: Stream) -> None:
        """Take no more of a stream; what has its end goes out all the same, as long as its lease holds."""
        with self._change:
            stream.closed = True
            if not stream.ended:
                self._forget(stream)

    def stop(self, within: float = 1.0) -> None:
        """Publish what is left, for so many seconds at most, and end the thread."""
        with self._change:
            self._stopping = True
            self._change.notify()
        thread = self._thread or threading.current_thread()
        if thread is threading.current_thread():
            return
        thread.join(within)
        with self._change:
            for stream in list(self._waiting):
                self._forget(stream)
        thread.join(within)

    def _forget(self, stream: Stream) -> None:
        self._bytes -= sum(map(len, stream.waiting))
        stream.waiting, stream.ended = [], True
        self._waiting.pop(stream, None)

    def _give_up(self) -> None:
        log.error("streams given up: Redis does not take their tokens", streams=len(self._waiting))
        for stream in list(self._waiting):
            self._forget(stream)

    def _work(self) -> None:
        flushed = 0.0
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping and not self._waiting:
                    return
                left = flushed + EVERY - time.monotonic()
                # Whoever waits for a first word, or for the last, does not wait for company.
                if left > 0 and not self._new:
                    self._change.wait_for(lambda: self._new, left)
                self._new = False
                pieces = self._due()
            flushed = time.monotonic()
            if pieces and not self._flush(pieces):
                time.sleep(RETRY_AFTER)

    def _due(self) -> list[tuple[Stream, Piece]]:
        """Return what may be written now: not what is too much at once, nor what is of a lease in doubt."""
        pieces: list[tuple[Stream, Piece]] = []
        room = MOST_AT_ONCE
        for stream in list(self._waiting):
            if not stream.holds():
                if stream.closed:
                    self._forget(stream)  # nobody renews its lease any more
            elif room > 0:
                events = _head(stream.waiting, room)
                room -= sum(map(len, events))
                pieces.append((stream, Piece(stream.job_id, stream.attempt, stream.written + 1, events)))
        return pieces

    def _flush(self, pieces: Sequence[tuple[Stream, Piece]]) -> bool:
        """Write pieces; keep them when Redis does not take them, and return False."""
        took = self._write(pieces)
        with self._change:
            for stream, piece in pieces:
                if took:
                    stream.written = piece.last
                    done = len(piece.events)
                    self._bytes -= sum(map(len, stream.waiting[:done]))
                    del stream.waiting[:done]
                self._waiting.pop(stream, None)
                if stream.waiting:
                    self._waiting[stream] = None  # behind the others
        return took

    def _write(self, pieces: Sequence[tuple[Stream, Piece]]) -> bool:
        pipe = self._redis.pipeline(transaction=False)
        now = time.monotonic()
        for stream, piece in pieces:
            name = streams.key(piece.job)
            pipe.xadd(name, {streams.FIELD: streams.encode_one(piece)}, id=f"{piece.attempt}-{piece.last}")
            if now >= stream.keep_at or piece.events[-1] == streams.END:
                pipe.expire(name, self._keep)
                stream.keep_at = now + min(KEEP_AGAIN, self._keep / 4)
        pipe.publish(streams.TOKENS, streams.encode(piece for _, piece in pieces))
        try:
            # An id that is too small was written before, or belongs to an attempt that is over: nothing to mend.
            answers = pipe.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            metrics.rings_failed.inc()
            log.warning("tokens not published; tried again", error=type(error).__name__, streams=len(pieces))
            for stream, _ in pieces:
                stream.keep_at = 0.0
            return False
        finally:
            pipe.reset()
        refused = [answer for answer in answers if isinstance(answer, Exception)]
        return not any(_is_outage(answer) for answer in refused)


def _head(events: Sequence[str], most: int) -> list[str]:
    """Return the first events that have `most` letters together, or the first alone."""
    size = taken = 0
    for event in events:
        size += len(event)
        if taken and size > most:
            break
        taken += 1
    return list(events[:taken])


def _is_outage(answer: Exception) -> bool:
    """Tell whether Redis refused everything just now (it loads, it is full), not this one id."""
    return not (isinstance(answer, redis.ResponseError) and "ID specified in XADD" in str(answer))
