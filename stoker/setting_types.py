"""The kinds of values that settings may have, each with the sentence that tells what is allowed."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator


def listed(text: str) -> list[str]:
    """Return the parts of a list that is written with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


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


_WINDOW = re.compile(r"none|[1-9][0-9]{0,5}[smhd]")
_DATABASE = re.compile(r"(postgresql|postgres|sqlite)[+:]|$")
_BUCKETS = ("s3", "gs", "az")
_PLACE = "must be a folder, or s3://, gs:// or az:// with a bucket; credentials are read from the environment"
_PREFIXES = "must be prefixes like s3://bucket/in/, gs://, az:// or file:///data/, without credentials"
_SERVERS = "must be URLs like http://10.0.0.5:8000, by commas; API keys have settings of their own"
_DELAYS = "needs at least one number of seconds, none below 0"
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
Place = Annotated[str, _text(lambda text: "://" not in text or _is_place(text, *_BUCKETS), _PLACE)]
Prefixes = Annotated[str, _text(_each(lambda part: _is_place(part, *_BUCKETS, "file")), _PREFIXES)]
Windows = Annotated[str, _text(_each(_WINDOW.fullmatch), "must be durations like 30m or 7d, or none")]
Servers = Annotated[str, _text(_each(_is_server), _SERVERS)]
