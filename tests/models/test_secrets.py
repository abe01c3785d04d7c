"""Signing secrets: one strict form, so that every receiver makes the same key of it."""

from __future__ import annotations

import base64

import pytest

from models.secrets import secret_of, valid_secret


@pytest.mark.parametrize("size", [24, 25, 32, 64])
def test_a_made_secret_is_valid(size: int) -> None:
    """What is made of 24 to 64 bytes is accepted."""
    assert valid_secret(secret_of(b"k" * size))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsec",
        base64.b64encode(b"k" * 32).decode(),
        secret_of(b"k" * 23),
        secret_of(b"k" * 65),
        secret_of(b"k" * 32).rstrip("="),
        secret_of(b"\xff" * 32).replace("/", "_"),
        secret_of(b"k" * 32) + "\n",
        " " + secret_of(b"k" * 32),
        "whsec_" + "k" * 43 + "é",
        "WHSEC_" + base64.b64encode(b"k" * 32).decode(),
        secret_of(b"k" * 32) + " " + secret_of(b"k" * 32),
    ],
)
def test_sloppy_secrets_are_refused(text: str) -> None:
    """Wrong prefix, wrong length, missing padding, other alphabets, spaces: refused, not repaired."""
    assert not valid_secret(text)
