"""From what a client sends to an interactive endpoint to the job it wants and the form of its answer."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from models import calls
from models.calls import CONTENT, RESPONSES, estimate
from models.jobs import NewJob
from stoker.settings import Settings
from webapi import tracing
from webapi.errors import found_by, from_pydantic
from webapi.interactive import Wish
from webapi.json_body import JsonObject
from webapi.keyed import Once
from webapi.known_models import KnownModel, KnownModels, texts
from webapi.openai import openai_problem
from webapi.schemas import EngineBody
from webapi.submission import Call, answer_tokens, body_text, refuse_stream, refuse_too_long

LANE = "realtime"
SPARE = 60.0
_OURS = frozenset({"background"})
"""Fields that say how the answer is to come, which is stoker's business: no engine gets them."""


def wish_of(  # all that a job is made of
    sent: JsonObject, endpoint: str, owner: str, settings: Settings, known: KnownModels, once: Once
) -> Wish:
    """Return the wish in a request's body. Raises Problem."""
    try:
        asked = EngineBody.model_validate(sent.values)
    except ValidationError as error:
        raise from_pydantic(found_by(error)) from None
    content = CONTENT[endpoint]
    if sent.values.get(content) is None:
        detail = f"Missing required parameter: '{content}'."
        raise openai_problem(400, "missing_required_parameter", detail, content)
    raw = {name: value for name, value in sent.raw.items() if endpoint != RESPONSES or name not in _OURS}
    call = Call(endpoint, sent.values, raw)
    refuse_stream(call)
    model = _model(asked.model or settings.served_name, known)
    prompts = list(texts(endpoint, sent.values))
    refuse_too_long(call, prompts, model)
    job = NewJob(
        owner=owner,
        model=model.name,
        endpoint=endpoint,
        body=body_text(call, model.name),
        lane=LANE,
        tokens=estimate(sum(map(len, prompts)), answer_tokens(call, model)),
        prefix=calls.prefix(endpoint, memoryview(sent.raw[content])),
        # For when this process is killed and can cancel nothing: nobody waits longer.
        expires_in=settings.wait_for + settings.request_timeout + SPARE,
        trace=tracing.current(),
    )
    return Wish(job, bool(asked.stream), _with_usage(sent.values), once)


def again(sent: JsonObject, row: sa.Row[Any]) -> Wish:
    """Return the wish that a job was made for, which was found good then."""
    job = NewJob(row.owner, row.model, row.endpoint, "")
    return Wish(job, sent.values.get("stream") is True, _with_usage(sent.values))


def _model(name: str, known: KnownModels) -> KnownModel:
    if not name:
        raise openai_problem(400, "missing_required_parameter", "Missing required parameter: 'model'.", "model")
    if (model := known.get(name)) is None:
        listed = ", ".join(known.names()) or "none yet"
        raise openai_problem(404, "model_not_found", f"The model '{name}' does not exist; known: {listed}.", "model")
    return model


def _with_usage(values: dict[str, Any]) -> bool:
    options = values.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def in_background(sent: JsonObject) -> bool:
    """Tell whether the answer is not waited for. Raises Problem when that is neither said nor left out."""
    given = sent.values.get("background")
    if given is not None and not isinstance(given, bool):
        raise openai_problem(400, "invalid_type", "background must be true or false.", "background")
    return given is True
