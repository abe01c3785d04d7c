"""Signing secrets of webhooks: what one looks like, and how one is made. Pure."""

from __future__ import annotations

import base64
import binascii

PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64


def valid_secret(text: str) -> bool:
    """Tell whether a text is `whsec_` and the padded base64 of 24 to 64 bytes.

    Strict, since lenient decoders make different keys of the same sloppy text: the receiver could never verify.
    """
    if not text.startswith(PREFIX):
        return False
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return _LEAST_BYTES <= len(key) <= _MOST_BYTES


def secret_of(key: bytes) -> str:
    """Return the secret that stands for 24 to 64 random bytes."""
    return PREFIX + base64.b64encode(key).decode("ascii")
