"""What a web process hears from Redis: ends of jobs and tokens, over one connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from models import streams
from models.streams import Piece
from stoker.settings import Settings

log = structlog.get_logger("stoker.web")

PING_EVERY, DEAF_AFTER = 1.0, 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 2.0


class Subscription:
    """Calls `ended`, `heard` and, when it may have missed something, `missed`; from the thread that calls `run`."""

    def __init__(
        self,
        settings: Settings,
        ended: Callable[[Sequence[str]], None],
        heard: Callable[[Sequence[Piece]], None],
        missed: Callable[[], None],
    ) -> None:
        self._url = settings.redis_client_url
        self._ended = ended
        self._heard = heard
        self._missed = missed
        self._deaf_since: float | None = None
        self.stopping = False

    def deaf_for(self) -> float:
        """Return for how many seconds nothing could be heard, 0 while it can."""
        since = self._deaf_since
        return 0.0 if since is None else time.monotonic() - since

    def run(self) -> None:
        """Listen until `stopping`; connects again, ever more patiently, while Redis is away."""
        pause = FIRST_PAUSE
        self._deaf_since = time.monotonic()
        while not self.stopping:
            started = time.monotonic()
            try:
                self._listen()
            except (redis.RedisError, OSError) as error:
                log.info("not subscribed to ended jobs", kind=type(error).__name__)
            except Exception as error:  # the thread's edge: deaf for good it would cost every stream
                log.exception("not subscribed to ended jobs", error=type(error).__name__)
            self._deaf_since = self._deaf_since or time.monotonic()
            pause = FIRST_PAUSE if time.monotonic() - started > LONGEST_PAUSE else min(pause * 2, LONGEST_PAUSE)
            time.sleep(pause)

    def _listen(self) -> None:
        client = redis.Redis.from_url(
            self._url,
            socket_timeout=2,
            socket_connect_timeout=1,
            socket_keepalive=True,
            health_check_interval=5,
            retry=Retry(NoBackoff(), 0),  # `run` tries again, and knows how long nothing was heard
        )
        with client, client.pubsub() as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(streams.ENDED, streams.TOKENS)
            heard = time.monotonic()
            while not self.stopping and time.monotonic() - heard < DEAF_AFTER:
                message = channel.get_message(timeout=PING_EVERY)
                if message is None:
                    channel.ping()
                    continue
                heard = time.monotonic()
                if message["type"] == "message":
                    self._act(message["channel"], message["data"])
                elif message["type"] == "subscribe" and message["channel"] == streams.TOKENS.encode():
                    self._deaf_since = None
                    self._missed()

    def _act(self, channel: bytes, data: bytes) -> None:
        if channel == streams.TOKENS.encode():
            self._heard(streams.decode(data))
        else:
            self._ended(data.decode(errors="replace").split(","))
