"""From what a client posts to a bulk that can be stored: its parameters, wherever they came from, and its input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError

from models.bulks import BULK_KIND, NewBulk
from models.calls import CHAT
from models.db import AnyRow
from models.jobs import Webhook
from models.sealing import Seal
from stoker.settings import Settings
from webapi import json_body, schemas
from webapi.bulk_inputs import SOURCES, Input
from webapi.bulk_schemas import BulkRequest, BulkRetry
from webapi.errors import MOST_NAME, FieldError, Problem, found_by, from_pydantic, invalid
from webapi.json_body import JsonObject
from webapi.known_models import KnownModels
from webapi.paging import PREFIX
from webapi.submission import webhook_of

T = TypeVar("T", BulkRequest, BulkRetry)

LANE = "bulk"
MOST_DEFAULTS = 100_000
"""Bytes of the parameters that go into every line."""
MOST_MEMBERS = 100

_TEXTS = frozenset({"model", "endpoint", "lane", "format", "system", "webhook_url", "file_id", "input_url"})
"""Parameters that are texts, whatever they look like in a query."""
_ON_A_LINE = "belongs on a line, not on the whole bulk"
_REFUSED_ALWAYS = {
    **dict.fromkeys(("prompt", "messages", "input", "custom_id", "id", "body", "method", "url"), _ON_A_LINE),
    "stream": "the answers of a bulk are not streamed",
    "completion_window": "is a parameter of /v1/batches; here it is expires_in, in seconds",
    "input_file_id": "is a parameter of /v1/batches; here it is file_id",
    "webhook_secret": 'is given as webhook={"url": ..., "secret": ...}',
}
_NOT_AGAIN = "cannot be changed by a retry"
_REFUSED: Mapping[type, Mapping[str, str]] = {
    BulkRequest: _REFUSED_ALWAYS,
    BulkRetry: _REFUSED_ALWAYS | dict.fromkeys(("system", "endpoint", "format", *SOURCES), _NOT_AGAIN),
}


def of_texts(pairs: Iterable[tuple[str, str]]) -> JsonObject:
    """Return parameters that came as texts, in a query or a form, as a JSON object. Raises Problem.

    A text that is JSON is taken for what it is, and any other for itself.
    """
    members: dict[str, msgspec.Raw] = {}
    tags: dict[str, str] = {}
    for name, text in pairs:
        if name in members or name in tags:
            raise invalid(name[:MOST_NAME], "was given twice")
        if name.startswith(PREFIX):
            tags[name] = text
        else:
            members[name] = _value(name, text)
        if len(members) + len(tags) > MOST_MEMBERS:
            raise Problem(422, "invalid_request", f"There are more than {MOST_MEMBERS} parameters.")
    if tags:
        if "metadata" in members:
            raise invalid("metadata", f"give metadata, or {PREFIX}<key>, not both", "one_of")
        members["metadata"] = _encoded({name.removeprefix(PREFIX): text for name, text in tags.items()})
    return json_body.parse(msgspec.json.encode(members))


def _value(name: str, text: str) -> msgspec.Raw:
    if name not in _TEXTS or text[:1] == '"':
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            if name not in _TEXTS or isinstance(value, str):
                return msgspec.Raw(text.encode())
    return _encoded(text)


def _encoded(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def checked(kind: type[T], sent: JsonObject, known: KnownModels) -> T:
    """Return a client's parameters, checked. Raises Problem 422, naming each bad field."""
    refused = _REFUSED[kind]
    if wrong := [name for name in sent.values if name in refused and sent.values[name] is not None]:
        errors = [FieldError(name, refused[name], "not_here") for name in wrong]
        raise Problem(422, "not_here", "; ".join(f"{one.field} {one.message}" for one in errors) + ".", errors=errors)
    if len(sent.values) > MOST_MEMBERS or len(_members_of(sent, "metadata")) > MOST_MEMBERS:
        raise Problem(422, "invalid_request", f"There are more than {MOST_MEMBERS} parameters.")
    try:
        asked = kind.model_validate(sent.values)
    except ValidationError as error:
        raise from_pydantic(found_by(error)) from None
    if asked.model is not None and known.get(asked.model) is None:
        names = ", ".join(known.names()) or "none"
        raise invalid("model", f"{asked.model!r} is not known; known: {names}", "model_not_found")
    if len(msgspec.json.encode(defaults_of(asked, sent))) > MOST_DEFAULTS:
        raise Problem(422, "too_large", f"Parameters for all lines may have {MOST_DEFAULTS} bytes.")
    return asked


def _members_of(sent: JsonObject, name: str) -> Mapping[str, Any]:
    found = sent.values.get(name)
    return found if isinstance(found, dict) else {}


def defaults_of(asked: BulkRequest | BulkRetry, sent: JsonObject) -> dict[str, Any]:
    """Return the parameters that are the engine's: all but stoker's own."""
    own = type(asked).model_fields.keys() - schemas.Sampling.model_fields.keys()
    return {name: value for name, value in sent.values.items() if name not in own and value is not None}


def fingerprint(sent: JsonObject, digest: str, scope: str = "") -> str:
    """Return what two requests have in common that are the same: their parameters and their content."""
    parameters = {name: value for name, value in sent.values.items() if name != "requests"}
    text = msgspec.json.encode([scope, parameters, digest], order="deterministic")
    return hashlib.sha256(text).hexdigest()


def new_bulk(asked: BulkRequest, sent: JsonObject, given: Input, owner: str, settings: Settings, seal: Seal) -> NewBulk:
    """Return the bulk that a client asks for. Raises Problem 422, NoSecretKey."""
    if asked.system is not None and asked.endpoint not in {None, CHAT}:
        raise invalid("system", "goes only with prompt, for a chat")
    hook = _hook(asked, settings, seal)
    return NewBulk(
        owner=owner,
        kind=BULK_KIND,
        lane=asked.lane or LANE,
        model=asked.model or settings.served_name,
        endpoint=asked.endpoint,
        file_id=given.file_id,
        input_url=given.input_url,
        format=given.format,
        gzip=given.gzip,
        defaults=defaults_of(asked, sent) | ({} if asked.system is None else {"system": asked.system}),
        metadata=asked.metadata,
        dry_run=asked.dry_run,
        stop_after_failed=asked.stop_after_failed,
        expires_in=asked.expires_in,
        webhook_url=hook.url if hook else None,
        webhook_secret=hook.secret if hook else None,
    )


def _hook(asked: BulkRequest | BulkRetry, settings: Settings, seal: Seal) -> Webhook | None:
    hook = webhook_of(asked.webhook_url, asked.webhook, settings, seal)
    if hook is not None and hook.include_result:
        raise invalid("webhook.include_result", "the results of a bulk are not sent; read them when it has ended")
    return hook


def retried(asked: BulkRetry, sent: JsonObject, old: AnyRow, settings: Settings, seal: Seal) -> NewBulk:
    """Return the bulk that runs what failed in another one again. Raises Problem 422, NoSecretKey."""
    hook = _hook(asked, settings, seal)
    changes = defaults_of(asked, sent) | ({} if asked.model is None else {"model": asked.model})
    return NewBulk(
        owner=old.owner,
        kind=BULK_KIND,
        lane=asked.lane or old.lane,
        model=asked.model or old.model,
        endpoint=old.endpoint,
        format=old.format,
        defaults=changes,
        metadata=old.metadata if asked.metadata is None else asked.metadata,
        dry_run=asked.dry_run,
        stop_after_failed=asked.stop_after_failed or old.stop_after_failed,
        retry_of=old.id,
        expires_in=asked.expires_in,
        webhook_url=hook.url if hook else old.webhook_url,
        webhook_secret=hook.secret if hook else old.webhook_secret,
    )
