"""Signatures of webhooks, after Standard Webhooks: how a receiver knows that an event is ours. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from standardwebhooks import Webhook

from models.secrets import valid_secret


def usable(secret: str) -> bool:
    """Tell whether a text holds one or more valid secrets, separated by spaces, and nothing else."""
    secrets = secret.split()
    return bool(secrets) and all(valid_secret(one) for one in secrets)


def sign(secret: str, msg_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that sign a body (UTF-8) sent at `timestamp` (seconds since 1970).

    While a secret rotates, `secret` holds the new and the old one, separated by a space, and the header a signature by
    each. Raises ValueError for what is no secret.
    """
    if not usable(secret):
        msg = "a signing secret is whsec_ and the base64 of 24 to 64 bytes"
        raise ValueError(msg)
    # The library signs the wrong second for any time that is not UTC.
    moment = datetime.fromtimestamp(timestamp, UTC)
    text = body.decode("utf-8")
    signatures = [Webhook(one).sign(msg_id, moment, text) for one in secret.split()]
    return {
        "webhook-id": msg_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
