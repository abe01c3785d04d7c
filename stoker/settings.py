"""Every setting of the service: one frozen object, read from `STOKER_*` variables at the entry points.

Nothing else reads the environment. A bad value stops the start with one line that names the variable.
"""

from __future__ import annotations

import base64
import ipaddress
from functools import cached_property
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Lane = Literal["realtime", "standard", "bulk"]
LANES: tuple[Lane, ...] = ("realtime", "standard", "bulk")
"""In the order they are served."""


class SettingsError(Exception):
    """A setting is missing or wrong; the text names the variable and what is allowed."""


class LaneRules(BaseModel):
    """How one lane's batches are cut. `share` is what a lower lane is guaranteed of the jobs cut while it waits."""

    model_config = ConfigDict(frozen=True)

    largest: int = Field(ge=1, le=100_000)
    max_tokens: int = Field(ge=1)
    wait: float = Field(ge=0, le=60)
    wait_busy: float = Field(ge=0, le=60)
    share: float = Field(ge=0, le=1)


class Settings(BaseSettings):
    """What an operator can set; each field is the variable `STOKER_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="STOKER_", frozen=True, extra="ignore", env_ignore_empty=True)

    # Where things are
    data: Path = Field(Path("var"), description="Folder of the embedded database, Redis data, logs and process list.")
    database_url: str = Field("", description="PostgreSQL or SQLite URL; empty: SQLite in the data folder.")
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis: the broker and the wake-up channel.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    # The web server
    host: str = Field("127.0.0.1", description="Address to listen on; other than loopback needs an API key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    web_threads: int = Field(256, ge=8, le=4096, description="Threads of each web process.")
    web_workers: int = Field(1, ge=1, le=64, description="Web processes.")
    max_body_bytes: int = Field(20_000_000, ge=1000, description="Largest request body of POST /v1/jobs.")
    max_waiters: int = Field(128, ge=0, description="Requests a process holds for ?wait=; beyond it: 503.")

    # Models and the engine
    engine: Literal["vllm", "fake"] = Field("vllm", description="What runs batches.")
    engine_name: str = Field("engine", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Stable name of this engine.")
    model: str = Field(
        "", description="Hugging Face id or folder that vLLM loads; empty: the demo model (`stoker up` only)."
    )
    model_name: str = Field("", description="Name that clients ask for; empty: derived from the model.")
    dtype: str = Field("", description="vLLM's --dtype; empty: chosen by the hardware.")
    tensor_parallel_size: int = Field(1, ge=1, description="vLLM's --tensor-parallel-size.")
    max_model_len: int | None = Field(None, ge=16, description="vLLM's --max-model-len; empty: the model's own.")
    engine_args: str = Field("", description="Any other vLLM flags, as on its command line.")
    engine_slots: int | None = Field(None, ge=1, description="Requests in the engine at once; empty: its own limit.")
    engine_threads: int = Field(64, ge=2, le=1024, description="Batches in flight on one engine, at most.")
    start_timeout: float = Field(900.0, gt=0, description="Seconds an engine may take to load.")
    fake_slots: int = Field(256, ge=1, description="Fake engine: requests at once.")
    fake_base_ms: float = Field(0.0, ge=0, description="Fake engine: milliseconds that any batch of requests takes.")
    fake_token_ms: float = Field(
        0.0, ge=0, description="Fake engine: milliseconds a word of the answer at batch size 1."
    )
    fake_batch_factor: float = Field(0.0, ge=0, description="Fake engine: each request at once slows a word so much.")
    fake_log: Path | None = Field(None, description="Fake engine: file that gets one line for each start of a job.")

    # Lanes: sizes in jobs and tokens, waits in seconds
    realtime_batch: int = Field(8, ge=1, description="Realtime lane: largest batch.")
    realtime_tokens: int = Field(65_536, ge=1, description="Realtime lane: most tokens in a batch.")
    realtime_wait: float = Field(0.0, ge=0, le=60, description="Realtime lane: wait for company, engine idle.")
    standard_batch: int = Field(32, ge=1, description="Standard lane: largest batch.")
    standard_tokens: int = Field(262_144, ge=1, description="Standard lane: most tokens in a batch.")
    standard_wait: float = Field(0.05, ge=0, le=60, description="Standard lane: wait for company.")
    standard_share: float = Field(0.2, ge=0, le=1, description="Standard lane: its share while realtime is full.")
    bulk_batch: int = Field(128, ge=1, description="Bulk lane: largest batch.")
    bulk_tokens: int = Field(1_048_576, ge=1, description="Bulk lane: most tokens in a batch.")
    bulk_wait: float = Field(0.5, ge=0, le=60, description="Bulk lane: wait for company.")
    bulk_share: float = Field(0.1, ge=0, le=1, description="Bulk lane: its share while the lanes above are full.")
    realtime_reserve: float = Field(0.1, ge=0, le=0.9, description="Share of an engine's slots kept for realtime.")
    ready_backlog: float = Field(0.25, ge=0, le=1, description="Share of an engine's slots kept READY ahead of it.")

    # Times in seconds, and attempts
    lease: float = Field(15.0, ge=1, description="How long a batch stays claimed without a heartbeat.")
    heartbeat: float = Field(5.0, gt=0, description="How often leases are renewed.")
    cancel_poll: float = Field(1.0, gt=0, description="How often a worker looks for cancelled jobs.")
    sweep_every: float = Field(2.0, ge=0.2, le=5, description="How often the sweeper runs; 5 at most.")
    run_timeout: float = Field(300.0, gt=0, description="Without a token or outcome for so long the engine is hung.")
    request_timeout: float = Field(600.0, gt=0, description="How long one request may run in an engine.")
    drain_timeout: float = Field(30.0, ge=0, description="How long a stopping worker lets its jobs finish.")
    engine_gone_after: float = Field(15.0, ge=1, description="An engine silent for so long is not counted as live.")
    ready_timeout: float = Field(30.0, ge=1, description="A READY batch that no live engine can take goes back.")
    max_attempts: int = Field(20, ge=1, description="Attempts after which a job fails as interrupted.")
    max_deferrals: int = Field(8, ge=1, description="Deferrals after which a job fails as upstream_unavailable.")
    idempotency_hours: float = Field(24.0, gt=0, description="How long an Idempotency-Key is remembered.")

    # Webhooks
    webhook_secret: str = Field("", repr=False, description="whsec_... that signs deliveries without own secret.")
    webhook_allow_cidrs: str = Field("", description="Internal networks that webhooks may reach, by commas.")
    webhook_schedule: str = Field(
        "0,5,300,1800,7200,18000,36000,50400,72000,86400", description="Seconds between a delivery's tries."
    )
    webhook_timeout: float = Field(10.0, gt=0, description="Seconds one try may take in all.")

    @field_validator("webhook_allow_cidrs")
    @classmethod
    def _cidrs(cls, value: str) -> str:
        for part in filter(None, (p.strip() for p in value.split(","))):
            ipaddress.ip_network(part, strict=False)
        return value

    @field_validator("webhook_schedule")
    @classmethod
    def _schedule(cls, value: str) -> str:
        if not value.strip() or any(float(part) < 0 for part in value.split(",")):
            msg = "needs at least one number of seconds, none below 0"
            raise ValueError(msg)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _secret(cls, value: str) -> str:
        if value and not (value.split() and all(_is_secret(one) for one in value.split())):
            msg = (
                "must be whsec_ and the base64 of 24 to 64 bytes, or several such, separated by spaces "
                "(make one with `stoker keys webhook-secret`)"
            )
            raise ValueError(msg)
        return value

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str) -> str:
        scheme = urlsplit(value).scheme.split("+")[0]
        if value and scheme not in {"postgresql", "postgres", "sqlite"}:
            msg = "must be a postgresql:// or sqlite:/// URL"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.heartbeat * 2 > self.lease:
            msg = "STOKER_HEARTBEAT must be at most half of STOKER_LEASE, or one lost beat loses the batch"
            raise ValueError(msg)
        if self.heartbeat * 2 > self.engine_gone_after:
            msg = "STOKER_HEARTBEAT must be at most half of STOKER_ENGINE_GONE_AFTER, or one lost beat loses the engine"
            raise ValueError(msg)
        return self

    @property
    def database(self) -> str:
        """Return the SQLAlchemy URL, with the driver that stoker uses."""
        if not self.database_url:
            return f"sqlite:///{self.data.absolute() / 'stoker.db'}"
        for plain in ("postgresql://", "postgres://"):
            if self.database_url.startswith(plain):
                return "postgresql+psycopg://" + self.database_url.removeprefix(plain)
        return self.database_url

    @property
    def broker_options(self) -> dict[str, object]:
        """Return kombu's transport options, the same wherever stoker speaks to the broker.

        Without `socket_timeout` the health check never runs, and a worker whose connection is cut half-open stays deaf.
        """
        return {
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,
        }

    @property
    def redis_client_url(self) -> str:
        """Return the Redis URL as redis-py takes it: to Celery a Unix socket is `redis+socket://`."""
        return self.redis_url.replace("redis+socket://", "unix://")

    @cached_property
    def served_name(self) -> str:
        """Return the name that clients ask for."""
        if self.model_name:
            return self.model_name
        if self.engine == "fake":
            return self.model or "fake"
        if not self.model:
            return "smollm2-135m-instruct"
        return Path(self.model).name if self.model.startswith(("/", ".")) else self.model

    @cached_property
    def lanes(self) -> dict[str, LaneRules]:
        """Return the rules of each lane, in the order they are served."""
        return {
            "realtime": LaneRules(
                largest=self.realtime_batch,
                max_tokens=self.realtime_tokens,
                wait=self.realtime_wait,
                wait_busy=max(self.realtime_wait, 0.005),
                share=1.0,
            ),
            "standard": LaneRules(
                largest=self.standard_batch,
                max_tokens=self.standard_tokens,
                wait=self.standard_wait,
                wait_busy=self.standard_wait,
                share=self.standard_share,
            ),
            "bulk": LaneRules(
                largest=self.bulk_batch,
                max_tokens=self.bulk_tokens,
                wait=self.bulk_wait,
                wait_busy=self.bulk_wait,
                share=self.bulk_share,
            ),
        }

    @cached_property
    def webhook_delays(self) -> tuple[float, ...]:
        """Return the seconds to wait before each try of a delivery."""
        return tuple(float(part) for part in self.webhook_schedule.split(","))

    @cached_property
    def webhook_networks(self) -> tuple[str, ...]:
        """Return the internal networks that webhooks may reach."""
        return tuple(part.strip() for part in self.webhook_allow_cidrs.split(",") if part.strip())


def _is_secret(text: str) -> bool:
    """Tell whether a text is a signing secret, as strictly as `models.secrets`, which must not be imported here."""
    if not text.startswith("whsec_"):
        return False
    try:
        return 24 <= len(base64.b64decode(text.removeprefix("whsec_"), validate=True)) <= 64  # noqa: PLR2004  # bytes
    except ValueError:
        return False


def load(**overrides: object) -> Settings:
    """Read the settings from the environment, `overrides` first.

    Raises `SettingsError`, one line naming each bad variable.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        lines = (
            f"STOKER_{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}"
            if item["loc"]
            else item["msg"]
            for item in error.errors(include_url=False, include_input=False)
        )
        raise SettingsError("; ".join(lines)) from None
