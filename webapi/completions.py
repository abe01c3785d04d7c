"""The interactive endpoints that OpenAI's API has too: chat, text completions, embeddings, and the list of models."""

from __future__ import annotations

from typing import Any

from flask import Response, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import BaseModel, Field

from models import engines
from models.calls import CHAT, COMPLETIONS, EMBEDDINGS
from webapi import access, answers, exchange, json_body, keyed, sse
from webapi.context import here
from webapi.engine_bodies import ChatBody, CompletionBody, EmbeddingBody
from webapi.openai import openai_problem, openai_problems
from webapi.openapi import body_of

api = APIBlueprint(
    "completions",
    __name__,
    abp_tags=[Tag(name="interactive", description="Answered as soon as an engine has the answer, or token by token.")],
    abp_security=[{"key": []}],
    abp_responses=openai_problems(400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504),
)

_ANSWER: dict[Any, Any] = {200: {"content": {"application/json": {}, **sse.CONTENT["content"]}}}


class ModelPath(BaseModel):
    """Which model."""

    model: str = Field(max_length=255)


api.before_request(access.admit)


@api.post(CHAT, operation_id="createChatCompletion", request_body=body_of(ChatBody), responses=_ANSWER)
def chat() -> Response:
    """Answer a chat."""
    return _answer(CHAT)


@api.post(COMPLETIONS, operation_id="createCompletion", request_body=body_of(CompletionBody), responses=_ANSWER)
def complete() -> Response:
    """Go on with a text."""
    return _answer(COMPLETIONS)


@api.post(EMBEDDINGS, operation_id="createEmbedding", request_body=body_of(EmbeddingBody), responses=_ANSWER)
def embed() -> Response:
    """Turn texts into vectors."""
    return _answer(EMBEDDINGS)


def _answer(endpoint: str) -> Response:
    raw = json_body.read(request, here().settings.max_body_bytes)
    return exchange.answer(json_body.parse(raw, nul=True), endpoint, keyed.once(raw, endpoint))


@api.get("/v1/models", operation_id="listModels", responses={200: {"content": {"application/json": {}}}})
def index() -> Response:
    """List the models that live engines serve."""
    return answers.respond(answers.encode({"object": "list", "data": _models()}))


@api.get("/v1/models/<path:model>", operation_id="getModel", responses={200: {"content": {"application/json": {}}}})
def show(path: ModelPath) -> Response:
    """Look at a model that a live engine serves."""
    for model in _models():
        if model["id"] == path.model:
            return answers.respond(answers.encode(model))
    raise openai_problem(404, "model_not_found", f"The model '{path.model}' does not exist.", "model")


def _models() -> list[dict[str, object]]:
    context = here()
    with context.database.reading() as tx:
        rows = engines.served(tx, context.settings.engine_gone_after)
    return [
        {
            "id": row.name,
            "object": "model",
            "created": int(row.registered_at),
            "owned_by": "stoker",
            "max_model_len": row.max_model_len,
        }
        for row in rows
    ]
