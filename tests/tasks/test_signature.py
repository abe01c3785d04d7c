"""Signatures: what receivers' own libraries accept."""

from __future__ import annotations

import json
import time

import openai
import pytest
from openai import InvalidWebhookSignatureError
from standardwebhooks import Webhook

from models.secrets import secret_of
from tasks import signature

SECRET = secret_of(b"0123456789abcdefghijklmnop")
OLD = secret_of(b"an older secret of 32 bytes long")
BODY = json.dumps(
    {"type": "job.succeeded", "id": "msg_1", "data": {"text": "\u00fc\u4e2d"}}, ensure_ascii=False
).encode()


def unwrap(body: bytes, headers: dict[str, str], secret: str) -> object:
    """Verify as a user of the openai package does."""
    return openai.OpenAI(api_key="none", webhook_secret=secret).webhooks.unwrap(body, headers)


def test_standardwebhooks_and_openai_accept_the_signature() -> None:
    """Both libraries verify what is signed now."""
    headers = signature.sign(SECRET, "msg_1", int(time.time()), BODY)
    assert Webhook(SECRET).verify(BODY, headers)["id"] == "msg_1"
    assert unwrap(BODY, headers, SECRET).type == "job.succeeded"  # type: ignore[attr-defined]


def test_the_signature_is_the_one_of_the_specification() -> None:
    """The example of the Standard Webhooks specification comes out byte by byte."""
    headers = signature.sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("secret", [SECRET, OLD])
def test_while_a_secret_rotates_both_verify(secret: str) -> None:
    """Two secrets make two signatures; a receiver with either one verifies."""
    headers = signature.sign(f"{SECRET} {OLD}", "msg_1", int(time.time()), BODY)
    assert len(headers["webhook-signature"].split()) == 2
    assert Webhook(secret).verify(BODY, headers)
    assert unwrap(BODY, headers, secret)


def test_another_body_does_not_verify() -> None:
    """A changed byte is noticed."""
    headers = signature.sign(SECRET, "msg_1", int(time.time()), BODY)
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(BODY + b" ", headers, SECRET)


@pytest.mark.parametrize("secret", ["", " ", "whsec_", "secret", f"{SECRET} secret", f"{SECRET},{OLD}"])
def test_what_is_no_secret_signs_nothing(secret: str) -> None:
    """A missing or bad secret is an error, and its text does not repeat the secret."""
    assert not signature.usable(secret)
    with pytest.raises(ValueError, match="a signing secret is whsec_"):
        signature.sign(secret, "msg_1", 1, BODY)
