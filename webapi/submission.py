"""From what a client posts to a job that can be stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic import ValidationError

from models import addresses, calls
from models.calls import ANSWER_LIMITS, CHAT, CONTENT, EMBEDDINGS, SHORT_FORMS, STREAMED, estimate
from models.jobs import NewJob, Webhook
from models.sealing import Seal
from stoker.settings import Settings
from webapi import schemas, tracing
from webapi.errors import MOST_ERRORS, MOST_NAME, FieldError, Problem, found_by, from_pydantic, invalid
from webapi.json_body import JsonObject
from webapi.known_models import KnownModel, KnownModels, texts
from webapi.schemas import OWN_FIELDS, EngineBody, JobRequest

_INSIDE = frozenset({*SHORT_FORMS, "system"})

MOST_SHOWN = 5
MOST_MEMBERS = 64
"""Of the objects `metadata` and `webhook`: more are refused before each gets an error of its own."""


@dataclass(frozen=True, slots=True)
class Call:
    """What an engine is to be asked: the members of its body decoded, and as they were sent. `prefix` names them."""

    endpoint: str
    values: dict[str, Any] = field(repr=False)
    raw: dict[str, msgspec.Raw] = field(repr=False)
    prefix: str = ""


def job_of(sent: JsonObject, owner: str, settings: Settings, known: KnownModels, seal: Seal) -> NewJob:
    """Return the job that a client's document describes. Raises Problem 422, naming each bad field; NoSecretKey."""
    _refuse_crowded(sent.values)
    try:
        asked = JobRequest.model_validate(sent.values)
        call = _short_form(sent, asked) if asked.body is None else _long_form(sent, asked)
    except ValidationError as error:
        raise from_pydantic(found_by(error)) from None
    refuse_stream(call)
    model = _model(asked, call, settings.served_name, known)
    prompts = list(texts(call.endpoint, call.values))
    refuse_too_long(call, prompts, model)
    return NewJob(
        owner=owner,
        model=model.name,
        endpoint=call.endpoint,
        body=body_text(call, model.name),
        lane=asked.lane,
        tokens=estimate(sum(map(len, prompts)), answer_tokens(call, model)),
        prefix=calls.prefix(call.endpoint, memoryview(call.raw[CONTENT[call.endpoint]])),
        metadata=asked.metadata,
        webhook=webhook_of(asked.webhook_url, asked.webhook, settings, seal),
        expires_in=asked.expires_in,
        trace=tracing.current(),
    )


def _refuse_crowded(values: dict[str, Any]) -> None:
    for name in ("metadata", "webhook"):
        if isinstance(values.get(name), dict) and len(values[name]) > MOST_MEMBERS:
            raise invalid(name, f"has more than {MOST_MEMBERS} members", "too_long")


def _short_form(sent: JsonObject, asked: JobRequest) -> Call:
    """Return the call made of `prompt`, `messages` or `input`, and of the fields that are not stoker's own."""
    given = [name for name in SHORT_FORMS if getattr(asked, name) is not None]
    if len(given) != 1:
        allowed = "give exactly one of prompt, messages, input, or endpoint and body"
        found = f"; this one has {' and '.join(given)}" if given else ""
        errors = [FieldError(name, "only one of them is allowed", "one_of") for name in given]
        errors = errors or [FieldError("prompt", "one of prompt, messages, input or body is required", "missing")]
        raise Problem(422, "one_of", allowed + found + ".", errors=errors)
    form = given[0]
    endpoint = asked.endpoint or SHORT_FORMS[form][0]
    if endpoint not in SHORT_FORMS[form]:
        raise invalid("endpoint", f"with {form} it must be {' or '.join(SHORT_FORMS[form])}")
    if asked.system is not None and (form, endpoint) != ("prompt", CHAT):
        raise invalid("system", "goes only with prompt, for a chat")
    raw = {name: value for name, value in sent.raw.items() if name not in OWN_FIELDS}
    values = {name: value for name, value in sent.values.items() if name not in OWN_FIELDS}
    if form == "prompt" and endpoint == CHAT:
        content = _as_messages(sent, asked)
        return Call(endpoint, values | {"messages": msgspec.json.decode(content)}, {"messages": content, **raw})
    return Call(endpoint, values | {form: sent.values[form]}, {form: sent.raw[form], **raw})


def _as_messages(sent: JsonObject, asked: JobRequest) -> msgspec.Raw:
    roles = [("system", "system")] if asked.system is not None else []
    chat = [{"role": role, "content": sent.raw[name]} for role, name in [*roles, ("user", "prompt")]]
    return msgspec.Raw(msgspec.json.encode(chat))


def _long_form(sent: JsonObject, asked: JobRequest) -> Call:
    """Return the call given as `endpoint` and `body`."""
    if asked.endpoint is None:
        raise invalid("endpoint", f"is required with body: one of {', '.join(CONTENT)}", "missing")
    beside = [name for name in sent.values if name not in OWN_FIELDS or name in _INSIDE]
    if beside := [name for name in beside if sent.values[name] is not None]:
        names = [name[:MOST_NAME] for name in beside[:MOST_ERRORS]]
        errors = [FieldError(name, "put it inside body", "beside_body") for name in names]
        shown = ", ".join(names[:MOST_SHOWN]) + (" and others" if len(beside) > MOST_SHOWN else "")
        raise Problem(422, "beside_body", f"With body, these belong inside it: {shown}.", errors=errors)
    body = sent.nested("body")
    try:
        EngineBody.model_validate(body.values)
    except ValidationError as error:
        raise from_pydantic(found_by(error), "body.") from None
    content = CONTENT[asked.endpoint]
    if body.values.get(content) is None:
        raise invalid(f"body.{content}", f"is required for {asked.endpoint}", "missing")
    return Call(asked.endpoint, body.values, body.raw, "body.")


def _model(asked: JobRequest, call: Call, default: str, known: KnownModels) -> KnownModel:
    inside = call.values.get("model")
    if inside is not None and asked.model is not None and inside != asked.model:
        raise invalid("body.model", "differs from model; give one of them, or the same twice", "model_differs")
    name = asked.model or inside or default
    if (model := known.get(name)) is None:
        where = "body.model" if inside is not None else "model"
        wrong = f"{name!r} is not known" if name else "is required, since there is no default model"
        raise invalid(where, f"{wrong}; known: {', '.join(known.names()) or 'none'}", "model_not_found")
    return model


def answer_tokens(call: Call, model: KnownModel) -> int | None:
    """Return how many tokens the answer may have, None when the request does not say."""
    if call.endpoint == EMBEDDINGS:
        return 0
    for name in ANSWER_LIMITS:
        limit = call.values.get(name)
        if limit is not None and model.max_model_len is not None and limit > model.max_model_len:
            message = f"must be at most {model.max_model_len}, the context of {model.name}"
            raise invalid(call.prefix + name, message, "less_than_equal")
    given = [call.values[name] for name in ANSWER_LIMITS if call.values.get(name) is not None]
    return min(given) * (call.values.get("n") or 1) if given else None


def refuse_stream(call: Call) -> None:
    """Refuse a stream of what has none. Raises Problem 422."""
    if call.values.get("stream") and call.endpoint not in STREAMED:
        raise invalid(f"{call.prefix}stream", f"{call.endpoint} has no stream; leave it out", "streaming_unsupported")


def refuse_too_long(call: Call, prompts: list[str], model: KnownModel) -> None:
    """Refuse what surely does not fit into the model's context. Raises Problem 422."""
    if call.values.get("truncate_prompt_tokens") is not None:
        return  # vLLM cuts the prompt itself
    if (tokens := model.surely_too_long(prompts)) is not None:
        message = f"has {tokens} tokens; {model.name} takes {model.max_model_len}"
        raise invalid(call.prefix + CONTENT[call.endpoint], message, "context_length_exceeded")


def body_text(call: Call, model: str) -> str:
    """Return the engine's body as JSON text: what was sent, byte for byte, and the model's name if it was missing."""
    members = call.raw if call.values.get("model") is not None else {"model": model, **_without_model(call.raw)}
    return msgspec.json.encode(members).decode()


def _without_model(raw: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    return {name: value for name, value in raw.items() if name != "model"}


def webhook_of(url: str | None, hook: schemas.Webhook | None, settings: Settings, seal: Seal) -> Webhook | None:
    """Return where to tell of the end, given in one of two ways, its secret sealed. Raises Problem 422, NoSecretKey.

    Judged again at each try, when it is known where the name leads.
    """
    if hook is not None and url is not None:
        raise invalid("webhook_url", "give webhook_url or webhook, not both", "one_of")
    name = "webhook.url"
    if url is not None:
        name, hook = "webhook_url", schemas.Webhook(url=url)
    if hook is None:
        return None
    if (why := addresses.refusal(hook.url, settings.webhook_networks, settings.webhook_port_ranges)) is not None:
        raise invalid(name, why)
    return Webhook(hook.url, seal.close(hook.secret) if hook.secret else "", hook.include_result)
