"""From a stream of vLLM's to a job's events and its outcome. Imports no vLLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from tasks.engines.assembly import RESPONSES, Assembly
from tasks.engines.base import Completion, Deferred, Outcome, Request
from tasks.engines.bodies import asks_usage

DONE = "[DONE]"


def with_usage(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """Have vLLM say in any case what a streamed answer cost; what is wrong in the body stays for vLLM to refuse."""
    options = body.get("stream_options") or {}
    if request.endpoint == RESPONSES or not isinstance(options, dict) or asks_usage(body):
        return body
    # Without `include_usage` this one has no effect; with ours it would get one.
    kept = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
    return {**body, "stream_options": {**kept, "include_usage": True}}


async def follow(request: Request, stream: AsyncGenerator[Any], *, usage: bool) -> Outcome | dict[str, Any]:
    """Emit the events of a stream and return the whole answer, or the error that came instead of the rest.

    `usage`: the client asked for the event that has nothing else. Whatever ends this, a cancellation too, closes the
    stream, and vLLM then aborts the request.
    """
    assembly = Assembly(request.endpoint)
    done = False
    async with aclosing(stream):
        async for event in stream:
            data = payload(event)
            if data == DONE:
                done = True
            elif data:
                assembly.add(data)
                if assembly.error is not None:
                    return assembly.error
                if request.emit is not None and (usage or not assembly.only_usage):
                    request.emit(data)
    if not (done or assembly.complete):
        return Deferred(request.id, "vLLM's stream ended in the middle of the answer")
    return Completion(request.id, assembly.body(), assembly.usage)


def payload(event: Any) -> str:
    """Return the JSON text of an event: chats come as lines of SSE, responses as models."""
    if not isinstance(event, str):
        text: str = event.model_dump_json(indent=None, by_alias=True)
        return text
    lines = (line for line in event.split("\n") if line.startswith("data:"))
    return "\n".join(line.removeprefix("data:").removeprefix(" ") for line in lines)
