"""The bodies of webhook requests. Pure, and made only of what never changes: each try sends the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from models import event_types
from models.events import Ending
from models.sending import Delivery


def event_id(subject: str, event: str) -> str:
    """Return the id of an event: the same for every endpoint that is told of it."""
    return f"evt_{hashlib.sha256(f'{subject} {event}'.encode()).hexdigest()[:32]}"


def one(delivery: Delivery, ending: Ending) -> bytes:
    """Return the body of an event."""
    event = _head(delivery.event, event_id(ending.job_id, delivery.event), "event", delivery.created_at)
    text = _json(event | {"data": _data(delivery.event, ending)})
    if delivery.include_result and ending.counts is None:
        # The answer is JSON already. Reading and writing 5 MB again would cost time, and change numbers and escapes.
        text = f'{text[:-2]},"result":{_result(delivery.event, ending) or "null"}}}}}'
    return text.encode()


def _result(event: str, ending: Ending) -> str | None:
    answer = ending.answer
    if answer is None or event not in event_types.RESPONSES or ending.state != "succeeded":
        return answer
    # The id that the answer has is the engine's own: no call knows it. The rest of it stays, byte by byte.
    ident = _response_id(ending)
    try:
        return _encode(_fields(answer) | {"id": msgspec.Raw(_encode(ident).encode())})
    except (msgspec.MsgspecError, RecursionError):
        pass  # a half of a character, as models do write them, or no object
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return answer
    return _json(found | {"id": ident}) if isinstance(found, dict) else answer


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _response_id(ending: Ending) -> str:
    return f"resp_{ending.job_id.removeprefix('job_')}"


def many(group_id: str, created_at: float, events: Sequence[bytes]) -> bytes:
    """Return the body of a request that carries several events, each as `one` made it."""
    head = _json(_head("events", group_id, "events", created_at))
    return b'%s,"data":[%s]}' % (head[:-1].encode(), b",".join(events))


def _head(kind: str, ident: str, what: str, created_at: float) -> dict[str, Any]:
    moment = datetime.fromtimestamp(created_at, UTC).isoformat(timespec="milliseconds")
    return {
        "type": kind,
        "id": ident,
        "object": what,
        "created_at": int(created_at),
        "timestamp": moment.replace("+00:00", "Z"),
    }


def _data(event: str, ending: Ending) -> dict[str, Any]:
    of_response = event in event_types.RESPONSES
    error = {"code": ending.code, "message": ending.message} if ending.code or ending.message else None
    data: dict[str, Any] = {
        # A response is a job under another name.
        "id": _response_id(ending) if of_response else ending.job_id,
        "state": ending.state,
        "model": ending.model,
        "metadata": ending.metadata,
        "error": error,
    }
    return data if ending.counts is None else data | {"counts": ending.counts}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
