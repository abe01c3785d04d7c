"""What each endpoint of an engine takes, for the OpenAPI page: the checks at the door are those of `EngineBody`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from webapi.schemas import Content, EngineBody, Messages


class ChatBody(EngineBody):
    """A chat, as the engine takes it."""

    messages: Messages


class CompletionBody(EngineBody):
    """A text to go on with, as the engine takes it."""

    prompt: Content


class EmbeddingBody(EngineBody):
    """What to turn into vectors, as the engine takes it."""

    input: Content
    stream: Literal[False] | None = None


class ResponseBody(EngineBody):
    """What to respond to, as the engine takes it."""

    input: Content
    background: bool | None = Field(None, description="Answered at once; the response is looked at until it is there.")
