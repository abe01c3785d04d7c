"""Every setting of the service: one frozen object, read from `STOKER_*` variables at the entry points.

Nothing else reads the environment. A bad value stops the start with one line that names the variable.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stoker.setting_types import (
    BrokerUrl,
    DatabaseUrl,
    Delays,
    LaneRules,
    Networks,
    Origins,
    Place,
    Policy,
    Ports,
    Prefixes,
    ReplicaUrl,
    SecretKeys,
    Secrets,
    Servers,
    Windows,
    driver_url,
    hasty_options,
    listed,
    port_range,
    told,
    transport_options,
    window_seconds,
)

Lane = Literal["realtime", "standard", "bulk"]
LANES: tuple[Lane, ...] = ("realtime", "standard", "bulk")
"""In the order they are served."""


class SettingsError(Exception):
    """A setting is missing or wrong; the text names the variable and what is allowed."""


class Settings(BaseSettings):
    """What an operator can set; each field is the variable `STOKER_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="STOKER_", frozen=True, extra="ignore", env_ignore_empty=True)

    # Where things are
    data: Path = Field(Path("var"), description="Folder of the embedded database, Redis data, logs and process list.")
    database_url: DatabaseUrl = Field("", description="PostgreSQL or SQLite URL; empty: SQLite in the data folder.")
    database_read_url: ReplicaUrl = Field("", description="A PostgreSQL replica that lists and polling may read.")
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis: the broker and the wake-up channel.")
    broker_url: BrokerUrl = Field("", description="Broker of doorbells if it is not Redis: amqp:// of a RabbitMQ.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of a worker's own metrics, in containers; 0: none.")

    # The web server
    host: str = Field("127.0.0.1", description="Address to listen on; other than loopback needs an API key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    web_threads: int = Field(3072, ge=8, le=16384, description="Threads of each web process, at most.")
    web_workers: int = Field(1, ge=1, le=64, description="Web processes.")
    max_body_bytes: int = Field(20_000_000, ge=1000, description="Largest JSON body of a request.")
    wait_for: float = Field(30.0, gt=0, description="Seconds an interactive request may wait for an engine; then: 503.")
    stream_keep: float = Field(600.0, ge=1, description="Seconds that the tokens of a stream can be read again.")
    stream_stall: float = Field(30.0, gt=0, description="Seconds that a client may read nothing of its stream.")
    max_waiters: int = Field(2048, ge=0, description="Waiting clients and streams a web process holds; beyond it: 503.")
    max_uploads: int = Field(32, ge=1, description="Uploads that a web process takes at once; beyond it: 503.")

    # How many jobs may wait: beyond it new ones are refused with 429
    max_queued_per_owner: int = Field(1_000_000, ge=1, description="Jobs that may wait, of one owner; beyond it: 429.")
    max_queued: int = Field(10_000_000, ge=1, description="Jobs that may wait, of all owners; beyond it: 429.")

    # What a key may do unless it says otherwise; 0: no limit
    key_requests_per_second: float = Field(0.0, ge=0, description="Requests a second of one API key; 0: no limit.")
    key_streams: int = Field(0, ge=0, description="Streams of one API key at once, in each web process; 0: no limit.")
    key_tokens_queued: int = Field(0, ge=0, description="Tokens that may wait, of one owner; 0: no limit.")
    key_tokens_per_day: int = Field(0, ge=0, description="Tokens a UTC day, of one owner; 0: no limit.")
    usage_days: float = Field(400.0, ge=1, description="Days that usage is kept.")
    session_hours: float = Field(12.0, gt=0, le=720, description="Hours that a login to the dashboard lasts.")
    cors_origins: Origins = Field("", description="Sites whose pages may call this service, by commas; empty: none.")

    # Models and the engine
    engine: Literal["vllm", "upstream", "fake"] = Field("vllm", description="What runs batches.")
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
    engine_threads: int = Field(64, ge=2, le=1024, description="Batches on one engine at once, realtime not counted.")
    start_timeout: float = Field(900.0, gt=0, description="Seconds an engine may take to load.")
    batches_in_flight: int | None = Field(
        None, ge=1, description="Batches on one engine at once; empty: as many as it has room for; 1: static batching."
    )
    upstreams: Servers = Field("", description="Engine upstream: URLs of OpenAI-compatible servers, by commas.")
    upstreams_file: Path | None = Field(
        None, description="Engine upstream: JSON file with more of them, read again whenever it changes."
    )
    upstream_max_connections: int | None = Field(
        None, ge=1, le=10_000, description="Requests at once on each upstream; empty: found by measuring."
    )
    upstream_api_key: str = Field("", repr=False, description="API key for upstreams that have no own.")
    upstream_check_every: float = Field(10.0, gt=0, description="Seconds between two checks of an upstream.")
    upstream_connect_timeout: float = Field(5.0, gt=0, description="Seconds to connect to an upstream.")
    fake_slots: int = Field(256, ge=1, description="Fake engine: requests at once.")
    fake_base_ms: float = Field(0.0, ge=0, description="Fake engine: milliseconds that any batch of requests takes.")
    fake_token_ms: float = Field(0.0, ge=0, description="Fake engine: milliseconds a word takes at batch size 1.")
    fake_batch_factor: float = Field(0.0, ge=0, description="Fake engine: each request at once slows a word so much.")
    fake_log: Path | None = Field(None, description="Fake engine: file that gets one line for each start of a job.")

    # Lanes: sizes in jobs and tokens, waits in seconds
    realtime_policy: Policy = Field(
        "fixed", description="Realtime lane: how its batches are chosen (docs/policies.md)."
    )
    realtime_batch: int = Field(8, ge=1, description="Realtime lane: largest batch.")
    realtime_tokens: int = Field(65_536, ge=1, description="Realtime lane: most tokens in a batch.")
    realtime_wait: float = Field(0.0, ge=0, le=60, description="Realtime lane: wait for company, engine idle.")
    standard_policy: Policy = Field("fixed", description="Standard lane: how its batches are chosen.")
    standard_batch: int = Field(32, ge=1, description="Standard lane: largest batch.")
    standard_tokens: int = Field(262_144, ge=1, description="Standard lane: most tokens in a batch.")
    standard_wait: float = Field(0.05, ge=0, le=60, description="Standard lane: wait for company.")
    standard_share: float = Field(0.2, ge=0, le=1, description="Standard lane: its share while realtime is full.")
    bulk_policy: Policy = Field("fixed", description="Bulk lane: how its batches are chosen.")
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

    # Bulks and files
    storage_url: Place = Field("", description="Folder or s3://, gs://, az:// URL of files; empty: in the data folder.")
    max_upload_bytes: int = Field(200_000_000, ge=1000, description="Largest file of POST /v1/files.")
    max_bulk_bytes: int = Field(20_000_000_000, ge=1000, description="Largest input of a bulk, also decompressed.")
    max_line_bytes: int = Field(1_000_000, ge=1000, description="Longest line of a batch or bulk.")
    max_batch_lines: int = Field(50_000, ge=1, description="Most lines of one batch of /v1/batches; blank ones count.")
    max_bulk_lines: int = Field(10_000_000, ge=1, description="Most lines of one bulk of /v1/bulks; blank ones count.")
    upload_timeout: float = Field(3600.0, gt=0, description="Seconds an upload may take altogether.")
    batch_windows: Windows = Field(
        "24h", description="Windows of /v1/batches besides 24h: `30m`, `7d`, `none`; by commas."
    )
    file_days: float = Field(30.0, gt=0, description="Days after which files of batches expire unless asked otherwise.")
    retention_days: float = Field(30.0, gt=0, description="Days that jobs, results and bulks are kept after their end.")
    max_gzip_ratio: float = Field(200.0, ge=2, description="How many bytes a byte of a gzip upload may become.")
    input_urls: Prefixes = Field("", description="Where bulks may read: s3://bucket/in/, file:///data/; by commas.")

    # Secrets and webhooks
    secret_key: SecretKeys = Field(
        "", repr=False, description="Keys that stored secrets are sealed with, newest first."
    )
    webhook_secret: Secrets = Field("", repr=False, description="whsec_... that signs deliveries without own secret.")
    webhook_allow_cidrs: Networks = Field("", description="Internal networks that webhooks may reach, by commas.")
    webhook_schedule: Delays = Field(
        "0,5,300,1800,7200,18000,36000,50400,72000,86400", description="Seconds between a delivery's tries."
    )
    webhook_timeout: float = Field(10.0, gt=0, description="Seconds one try may take in all.")
    webhook_at_once: int = Field(64, ge=1, le=1024, description="Webhook requests of one worker at once.")
    webhook_per_host: int = Field(8, ge=1, le=1024, description="The same, to one host.")
    webhook_ports: Ports = Field("80,443,1024-65535", description="Ports that webhooks may reach.")
    webhook_disable_days: float = Field(5.0, gt=0, description="An endpoint that only fails for so long is disabled.")

    @model_validator(mode="after")
    def _times(self) -> Self:
        for name, lost in (("lease", "batch"), ("engine_gone_after", "engine")):
            if self.heartbeat * 2 > getattr(self, name):
                msg = (
                    f"STOKER_HEARTBEAT must be at most half of STOKER_{name.upper()}, or one lost beat loses the {lost}"
                )
                raise ValueError(msg)
        return self

    @property
    def database(self) -> str:
        """Return the SQLAlchemy URL, with the driver that stoker uses."""
        return driver_url(self.database_url) if self.database_url else f"sqlite:///{self.data.absolute() / 'stoker.db'}"

    @property
    def database_replica(self) -> str:
        """Return the SQLAlchemy URL of a read replica, empty where there is none."""
        return driver_url(self.database_read_url)

    @property
    def broker(self) -> str:
        """Return the URL of Celery's broker."""
        return self.broker_url or self.redis_url

    @property
    def storage(self) -> str:
        """Return where files lie: the path of a folder, or the URL of a bucket."""
        if "://" in self.storage_url:
            return self.storage_url
        return str(Path(self.storage_url).absolute() if self.storage_url else self.data.absolute() / "files")

    @cached_property
    def windows(self) -> dict[str, float | None]:
        """Return the seconds of each completion window that a batch may ask for; None: it never expires."""
        return {name: window_seconds(name) for name in ("24h", *listed(self.batch_windows))}

    @cached_property
    def input_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes of the URLs that a bulk's input may be read from."""
        return tuple(listed(self.input_urls))

    @property
    def broker_options(self) -> dict[str, object]:
        """Return kombu's transport options, the same wherever stoker speaks to the broker."""
        return transport_options(self.broker)

    @property
    def hasty_broker_options(self) -> dict[str, object]:
        """Return them for who must not be held up by the broker."""
        return hasty_options(self.broker)

    @property
    def redis_client_url(self) -> str:
        """Return the Redis URL as redis-py takes it: to Celery a Unix socket is `redis+socket://`."""
        return self.redis_url.replace("redis+socket://", "unix://")

    @cached_property
    def served_name(self) -> str:
        """Return the name that clients ask for, and get when they name none; `""`: they must name one.

        Upstreams tell their models themselves: of those only the operator can say which is the usual one.
        """
        if self.model_name or self.engine == "upstream":
            return self.model_name
        if self.engine == "fake":
            return self.model or "fake"
        if not self.model:
            return "smollm2-135m-instruct"
        return Path(self.model).name if self.model.startswith(("/", ".")) else self.model

    @cached_property
    def lanes(self) -> dict[str, LaneRules]:
        """Return the rules of each lane, in the order they are served."""
        least_busy = {"realtime": 0.005}
        return {
            lane: LaneRules(
                policy=getattr(self, f"{lane}_policy"),
                largest=getattr(self, f"{lane}_batch"),
                max_tokens=getattr(self, f"{lane}_tokens"),
                wait=getattr(self, f"{lane}_wait"),
                wait_busy=max(getattr(self, f"{lane}_wait"), least_busy.get(lane, 0.0)),
                share=getattr(self, f"{lane}_share", 1.0),
            )
            for lane in LANES
        }

    @cached_property
    def webhook_delays(self) -> tuple[float, ...]:
        """Return the seconds to wait before each try of a delivery."""
        return tuple(float(part) for part in self.webhook_schedule.split(","))

    @cached_property
    def webhook_networks(self) -> tuple[str, ...]:
        """Return the internal networks that webhooks may reach."""
        return tuple(listed(self.webhook_allow_cidrs))

    @cached_property
    def webhook_port_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return the ports that webhooks may reach, as (first, last)."""
        return tuple(port_range(part) for part in listed(self.webhook_ports))


def load(**overrides: object) -> Settings:
    """Read the settings from the environment, `overrides` first.

    Raises `SettingsError`, one line naming each bad variable.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        raise SettingsError(told(error)) from None
