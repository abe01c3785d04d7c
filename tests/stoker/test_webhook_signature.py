"""Webhooks are verified with the standard library: what the service signs passes, and nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from standardwebhooks import Webhook

from models.secrets import secret_of
from stoker import Client, WebhookVerificationError, verify_webhook
from tasks.signature import sign

SECRET, OTHER = secret_of(b"a" * 32), secret_of(b"b" * 32)
BODY = json.dumps({"type": "bulk.completed", "data": {"id": "bulk_1", "text": "é"}}, ensure_ascii=False).encode()


def signed(secret: str = SECRET, body: bytes = BODY, late: float = 0) -> dict[str, str]:
    """Return the headers with which the service sends a body."""
    return sign(secret, "msg_1", int(time.time() - late), body)


def test_what_the_service_signs_is_verified() -> None:
    """The event comes back, whatever the case of the headers, as bytes or text, from either client."""
    shouted = {name.upper(): value for name, value in signed().items()} | {"Host": "example.com"}
    for body in (BODY, BODY.decode(), bytearray(BODY)):
        assert verify_webhook(body, shouted, SECRET)["data"] == {"id": "bulk_1", "text": "é"}
    assert Client.verify_webhook(BODY, signed(), SECRET)["type"] == "bulk.completed"


def test_it_agrees_with_the_standards_own_library() -> None:
    """What that library accepts is accepted here, and the other way round."""
    assert Webhook(SECRET).verify(BODY.decode(), signed()) == verify_webhook(BODY, signed(), SECRET)


@pytest.mark.parametrize("secret", [f"{OTHER} {SECRET}", [OTHER, SECRET], (SECRET,), SECRET.removeprefix("whsec_")])
def test_one_of_several_secrets_is_enough(secret: Any) -> None:
    """While a secret rotates, the receiver knows both; the prefix may be left out."""
    assert verify_webhook(BODY, signed(), secret)


def test_one_of_several_signatures_is_enough() -> None:
    """While a secret rotates, the service signs with both; unknown schemes are passed over."""
    headers = signed(f"{OTHER} {SECRET}")
    headers["webhook-signature"] = f"v1a,AAAA {headers['webhook-signature']} v2,x é"
    assert verify_webhook(BODY, headers, SECRET)
    assert verify_webhook(BODY, headers, OTHER)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"webhook-signature": "v1,"}, "no signature"),
        ({"webhook-signature": "v1,é"}, "no signature"),
        ({"webhook-signature": "nonsense"}, "no signature"),
        ({"webhook-signature": ""}, "webhook-signature is missing"),
        ({"webhook-id": "msg_2"}, "no signature"),
        ({"webhook-id": ""}, "webhook-id is missing"),
        ({"webhook-timestamp": "soon"}, "no number"),
        ({"webhook-timestamp": "9" * 5000}, "no number"),
        ({"webhook-timestamp": "-1"}, "no number"),
        ({"webhook-timestamp": "²"}, "no number"),
    ],
)
def test_changed_headers_are_refused(changed: dict[str, str], why: str) -> None:
    """Each of the three headers counts."""
    with pytest.raises(WebhookVerificationError, match=why):
        verify_webhook(BODY, signed() | changed, SECRET)


def test_a_changed_body_is_refused() -> None:
    """One byte is enough, even one that no JSON parser minds."""
    with pytest.raises(WebhookVerificationError, match="no signature"):
        verify_webhook(BODY + b" ", signed(), SECRET)


def test_another_secret_is_refused() -> None:
    """Signed by somebody else."""
    with pytest.raises(WebhookVerificationError, match="no signature"):
        verify_webhook(BODY, signed(), OTHER)


@pytest.mark.parametrize("late", [301, -302])
def test_an_old_webhook_is_refused(late: float) -> None:
    """More than five minutes off, either way, unless more is allowed."""
    with pytest.raises(WebhookVerificationError, match=r"too (old|early)"):
        verify_webhook(BODY, signed(late=late), SECRET)
    assert verify_webhook(BODY, signed(late=late), SECRET, tolerance=400)


@pytest.mark.parametrize("secret", ["", " ", "whsec_", [], "whsec_not base64", ["whsec_"], "ééé"])
def test_what_is_no_secret_verifies_nothing(secret: Any) -> None:
    """An empty secret signs anything: a mistake of the receiver's, told as such."""
    with pytest.raises(ValueError, match="secret"):
        verify_webhook(BODY, signed(), secret)


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff"])
def test_a_signed_body_must_be_an_event(body: bytes) -> None:
    """A JSON object, and nothing else."""
    headers = signed(body=body) if body != b"\xff" else _signed_raw(body)
    with pytest.raises(WebhookVerificationError, match="JSON object"):
        verify_webhook(body, headers, SECRET)


def _signed_raw(body: bytes) -> dict[str, str]:
    """Sign bytes that are no text, which the service never does."""
    import base64
    import hashlib
    import hmac

    stamp = str(int(time.time()))
    digest = hmac.digest(b"a" * 32, b".".join((b"msg_1", stamp.encode(), body)), hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": "msg_1", "webhook-timestamp": stamp, "webhook-signature": signature}
