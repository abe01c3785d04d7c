"""How a receiver knows that a webhook came from the service: Standard Webhooks, with the standard library alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from stoker.api_errors import WebhookVerificationError

_PREFIX = "whsec_"
_SCHEME = "v1,"
_MOST_DIGITS = 12


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str | Sequence[str],
    tolerance: float = 300.0,
) -> dict[str, Any]:
    """Return the event of a webhook that the service sent; raises WebhookVerificationError for any other.

    `body` is what came, byte by byte, before any JSON parser. While a secret rotates give both, as a list or with a
    space between. `tolerance` is by how many seconds the webhook's time and this clock's may differ.
    """
    keys = _keys(secret)
    sent = {name.lower(): value for name, value in headers.items()}
    msg_id, timestamp, signatures = (_header(sent, name) for name in ("id", "timestamp", "signature"))
    _check_time(timestamp, tolerance)
    raw = body.encode() if isinstance(body, str) else bytes(body)
    signed = b".".join((msg_id.encode(), timestamp.encode(), raw))
    _check_signature(keys, signed, signatures)
    try:
        event = json.loads(raw)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise WebhookVerificationError("the webhook's body is no JSON object")
    return event


def _header(headers: Mapping[str, str], name: str) -> str:
    if value := headers.get(f"webhook-{name}"):
        return value
    raise WebhookVerificationError(f"the header webhook-{name} is missing")


def _check_time(timestamp: str, tolerance: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _MOST_DIGITS):
        raise WebhookVerificationError("webhook-timestamp is no number of seconds")
    late = time.time() - int(timestamp)
    if abs(late) > tolerance:
        raise WebhookVerificationError(f"the webhook is {abs(late):.0f} s too {'old' if late > 0 else 'early'}")


def _check_signature(keys: Sequence[bytes], signed: bytes, signatures: str) -> None:
    given = [one.removeprefix(_SCHEME).encode() for one in signatures.split() if one.startswith(_SCHEME)]
    wanted = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    # All are compared, each in constant time: how long it takes tells nothing.
    equal = [hmac.compare_digest(one, other) for one in given for other in wanted]
    if not any(equal):
        raise WebhookVerificationError("no signature of the webhook is by this secret")


def _keys(secret: str | Sequence[str]) -> list[bytes]:
    """Return the keys that secrets stand for. Raises ValueError for what is no secret: an empty one signs anything."""
    texts = secret.split() if isinstance(secret, str) else list(secret)
    try:
        keys = [base64.b64decode(text.removeprefix(_PREFIX), validate=True) for text in texts]
    except (binascii.Error, ValueError):
        keys = []
    if not keys or not all(keys):
        raise ValueError("a signing secret is whsec_ and base64")
    return keys
