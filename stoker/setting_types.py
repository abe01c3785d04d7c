"""The kinds of values that settings may have, each with the sentence that tells what is allowed."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

Policy = Literal["fixed", "token_budget", "bucketed", "adaptive"]


class LaneRules(BaseModel):
    """How one lane's batches are cut. `share` is what a lower lane is guaranteed of the jobs cut while it waits."""

    model_config = ConfigDict(frozen=True)

    policy: Policy
    largest: int = Field(ge=1, le=100_000)
    max_tokens: int = Field(ge=1)
    wait: float = Field(ge=0, le=60)
    wait_busy: float = Field(ge=0, le=60)
    share: float = Field(ge=0, le=1)


def listed(text: str) -> list[str]:
    """Return the parts of a list that is written with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def window_seconds(text: str) -> float | None:
    """Return how long a completion window like 30m is; None for `none`."""
    return None if text == "none" else int(text[:-1]) * _UNITS[text[-1]]


def driver_url(url: str) -> str:
    """Return a database's URL with the driver that stoker uses."""
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


def transport_options(broker: str) -> dict[str, object]:
    """Return kombu's transport options for a broker: those of Redis, or for amqp:// those of py-amqp's connections.

    Nobody waits for a broker without an end: a worker whose connection is cut half-open would stay deaf.
    """
    if broker.startswith(_AMQP):
        # A ring is told to be taken, so that one that was refused (memory, disk) counts; tried once: whoever rings
        # goes on without it, and workers have a loop of their own.
        options: dict[str, object] = {"read_timeout": 5, "write_timeout": 5, "confirm_publish": True, "max_retries": 0}
        # Without the name py-amqp takes the certificate of any host.
        return options | ({"ssl": {"server_hostname": address(broker)[0]}} if broker.startswith("amqps://") else {})
    # Without `socket_timeout` the health check never runs.
    return {"socket_timeout": 5, "socket_connect_timeout": 5, "socket_keepalive": True, "health_check_interval": 5}


def address(url: str) -> tuple[str, int]:
    """Return the host and port of a Redis or RabbitMQ."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or _PORTS_OF.get(parts.scheme, 6379)


def hasty_options(broker: str) -> dict[str, object]:
    """Return the same for who has others to serve: it waits for 2 s, and tries once."""
    if broker.startswith(_AMQP):
        return transport_options(broker) | {"read_timeout": 2, "write_timeout": 2}
    return transport_options(broker) | {"socket_timeout": 2, "socket_connect_timeout": 1, "max_retries": 0}


def port_range(text: str) -> tuple[int, int]:
    """Return the first and last of a range like 8000-8999, or of one port."""
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def told(error: ValidationError) -> str:
    """Return in one line which variables are wrong, and what is allowed."""
    return "; ".join(
        f"STOKER_{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}" if item["loc"] else item["msg"]
        for item in error.errors(include_url=False, include_input=False)
    )


def _is_secret(text: str) -> bool:
    """Tell whether a text is a signing secret, as strictly as `models.secrets`, which must not be imported here."""
    if not text.startswith("whsec_"):
        return False
    try:
        return 24 <= len(base64.b64decode(text.removeprefix("whsec_"), validate=True)) <= 64  # noqa: PLR2004  # bytes
    except ValueError:
        return False


def _is_server(url: str) -> bool:
    """Tell whether a text is the address of an HTTP server, without credentials in it."""
    parts = urlsplit(url)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc and not parts.query


def _is_place(url: str, *schemes: str) -> bool:
    """Tell whether a URL names a bucket or folder, in one spelling and without credentials."""
    scheme, _, rest = url.partition("://")
    if scheme not in schemes or rest.startswith("/") != (scheme == "file") or not rest:
        return False
    return not any(sign in rest for sign in "@?#\\") and not {".", ".."} & set(rest.split("/"))


def _is_origin(url: str) -> bool:
    """Tell whether a text is a page's origin as browsers write it: scheme, host, and a port that is not the usual."""
    return re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?", url) is not None


def _are_ports(text: str) -> bool:
    first, last = port_range(text)
    return 0 < first <= last <= 65535  # noqa: PLR2004  # the highest port


def _is_key(text: str) -> bool:
    """Tell whether a text is the url-safe base64 of 32 bytes."""
    return re.fullmatch(r"[A-Za-z0-9_-]{43}=", text) is not None


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PORTS_OF = {"amqp": 5672, "pyamqp": 5672, "amqps": 5671}
_AMQP = ("amqp://", "amqps://", "pyamqp://")
_BROKER = re.compile(r"(amqps?|pyamqp)://|$")
_WINDOW = re.compile(r"none|[1-9][0-9]{0,5}[smhd]")
_DATABASE = re.compile(r"(postgresql|postgres|sqlite)[+:]|$")
_REPLICA = re.compile(r"(postgresql|postgres)[+:]|$")
_BUCKETS = ("s3", "gs", "az")
_PLACE = "must be a folder, or s3://, gs:// or az:// with a bucket; credentials are read from the environment"
_PREFIXES = "must be prefixes like s3://bucket/in/, gs://, az:// or file:///data/, without credentials"
_SERVERS = "must be URLs like http://10.0.0.5:8000, by commas; API keys have settings of their own"
_DELAYS = "needs at least one number of seconds, none below 0"
_ORIGINS = "must be origins like https://app.example.com, by commas"
_PORTS = "must be ports and ranges of ports like 443,8000-8999"
_KEYS = "must be the url-safe base64 of 32 bytes, or several such, separated by spaces (`stoker keys secret-key`)"
_SIGNS = (
    "must be whsec_ and the base64 of 24 to 64 bytes, or several such, separated by spaces "
    "(make one with `stoker keys webhook-secret`)"
)


def _text(good: Callable[[str], object], else_say: str) -> AfterValidator:
    def check(value: str) -> str:
        if not good(value):
            raise ValueError(else_say)
        return value

    return AfterValidator(check)


def _each(good: Callable[[str], object]) -> Callable[[str], bool]:
    return lambda text: all(good(part) for part in listed(text))


def _good_secrets(text: str) -> bool:
    return text == "" or (text.split() != [] and all(map(_is_secret, text.split())))


Secrets = Annotated[str, _text(_good_secrets, _SIGNS)]
Delays = Annotated[str, _text(lambda text: text.strip() and all(float(x) >= 0 for x in text.split(",")), _DELAYS)]
Networks = Annotated[str, _text(_each(lambda part: ipaddress.ip_network(part, strict=False)), "")]
DatabaseUrl = Annotated[str, _text(_DATABASE.match, "must be a postgresql:// or sqlite:/// URL")]
ReplicaUrl = Annotated[str, _text(_REPLICA.match, "must be a postgresql:// URL; empty: all is read from one database")]
BrokerUrl = Annotated[str, _text(_BROKER.match, "must be an amqp:// or amqps:// URL; empty: Redis is the broker")]
Place = Annotated[str, _text(lambda text: "://" not in text or _is_place(text, *_BUCKETS), _PLACE)]
Prefixes = Annotated[str, _text(_each(lambda part: _is_place(part, *_BUCKETS, "file")), _PREFIXES)]
Windows = Annotated[str, _text(_each(_WINDOW.fullmatch), "must be durations like 30m or 7d, or none")]
Servers = Annotated[str, _text(_each(_is_server), _SERVERS)]
Origins = Annotated[str, _text(_each(_is_origin), _ORIGINS)]
Ports = Annotated[str, _text(lambda text: listed(text) != [] and _each(_are_ports)(text), _PORTS)]
SecretKeys = Annotated[str, _text(lambda text: all(map(_is_key, text.split())), _KEYS)]
