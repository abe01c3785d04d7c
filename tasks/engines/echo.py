"""The fake engine's answers: what OpenAI's endpoints would say if the model only repeated the prompt. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.engines import bodies
from tasks.engines.base import Completion, Deferred, Rejection, Request, ServedModel, Usage
from tasks.engines.echo_streams import SILENCE, Speech, speech
from tasks.engines.refusals import refuse, unsupported

GARBAGE = "\x00\ud800\udc01\udfff" + "g" * 5_000_000
"""NUL, lone surrogates, 5 MB."""
MOST_COPIES = 128
CUT = "[[cut]]"
CUT_AFTER = 2
"""Words of a stream before it breaks off."""


class BadBody(Exception):
    """The body is not what the endpoint takes."""

    def __init__(self, param: str, message: str, code: str = "invalid_request", status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Echo:
    """An outcome, how many words it takes to say, and the events of its stream: none for a request without one."""

    outcome: Completion | Deferred
    words: int
    speech: Speech = SILENCE


def answer(request: Request, model: ServedModel) -> Echo | Rejection:
    """Answer one request of any endpoint."""
    serve = ENDPOINTS.get(request.endpoint)
    if serve is None:
        return unsupported(request, known=False)
    body = bodies.read(request)
    if isinstance(body, Rejection):
        return body
    try:
        _check_model(body, model)
        made, usage = serve(request, body, model)
    except BadBody as bad:
        return refuse(request, str(bad), code=bad.code, param=bad.param, status=bad.status)
    made["model"] = model.name
    # ASCII: what no encoding can carry (lone surrogates) stays an escape.
    completion = Completion(request.id, json.dumps(made), usage)
    if not body.get("stream"):
        return Echo(completion, usage.completion_tokens)
    said = speech(request, made, usage=bodies.asks_usage(body))
    if CUT in request.body:
        return Echo(Deferred(request.id, "cut"), CUT_AFTER, Speech(said.head, said.words[:CUT_AFTER], []))
    return Echo(completion, usage.completion_tokens, said)


def _check_model(body: dict[str, Any], model: ServedModel) -> None:
    if body.get("model", model.name) != model.name:
        raise BadBody("model", "there is no such model here", "model_not_found", 404)


def _chat(request: Request, body: dict[str, Any], model: ServedModel) -> tuple[dict[str, Any], Usage]:
    prompt = _last_user_text(body.get("messages"), "messages")
    limit = _limit(body, "max_completion_tokens", "max_tokens")
    text, finish, usage = _echo(prompt, limit, model)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": finish,
        }
        for index in range(_copies(body))
    ]
    return _answer(f"chatcmpl-{request.id}", "chat.completion", choices, usage, len(choices))


def _completions(request: Request, body: dict[str, Any], model: ServedModel) -> tuple[dict[str, Any], Usage]:
    prompts = _texts(body.get("prompt"), "prompt")
    limit = _limit(body, "max_tokens")
    echoes = [_echo(prompt, limit, model) for prompt in prompts for _ in range(_copies(body))]
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        for index, (text, finish, _) in enumerate(echoes)
    ]
    total = Usage(sum(u.prompt_tokens for *_, u in echoes), sum(u.completion_tokens for *_, u in echoes))
    return _answer(f"cmpl-{request.id}", "text_completion", choices, total, 1)


def _responses(request: Request, body: dict[str, Any], model: ServedModel) -> tuple[dict[str, Any], Usage]:
    name = bodies.response_id(request)
    given = body.get("input")
    prompt = given if isinstance(given, str) else _last_user_text(given, "input")
    text, finish, usage = _echo(prompt, _limit(body, "max_output_tokens"), model)
    status = "completed" if finish == "stop" else "incomplete"
    output = {
        "id": f"msg_{name.removeprefix('resp_')}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }
    made = {
        "id": name,
        "object": "response",
        "created_at": 0,
        "status": status,
        "incomplete_details": None if finish == "stop" else {"reason": "max_output_tokens"},
        "output": [output],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }
    return made, usage


def _embeddings(_request: Request, body: dict[str, Any], _model: ServedModel) -> tuple[dict[str, Any], Usage]:
    texts = _texts(body.get("input"), "input")
    encoded = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(text, encoded=encoded)}
        for index, text in enumerate(texts)
    ]
    words = sum(len(text.split()) for text in texts)
    made = {"object": "list", "data": data, "usage": {"prompt_tokens": words, "total_tokens": words}}
    return made, Usage(words, 0)


Serve = Callable[[Request, dict[str, Any], ServedModel], tuple[dict[str, Any], Usage]]
ENDPOINTS: dict[str, Serve] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/embeddings": _embeddings,
}


def _answer(
    name: str, kind: str, choices: list[dict[str, Any]], usage: Usage, copies: int
) -> tuple[dict[str, Any], Usage]:
    spent = Usage(usage.prompt_tokens, usage.completion_tokens * copies)
    counted = {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.prompt_tokens + spent.completion_tokens,
    }
    return {"id": name, "object": kind, "created": 0, "choices": choices, "usage": counted}, spent


def _echo(prompt: str, limit: int | None, model: ServedModel) -> tuple[str, str, Usage]:
    """Return the text, why it ended and its price, words counted as tokens."""
    read = len(prompt.split())
    if model.max_model_len is not None and read >= model.max_model_len:
        raise BadBody(
            "messages",
            f"the prompt has {read} tokens, and the maximum context length is {model.max_model_len}",
            "context_length_exceeded",
        )
    if "[[garbage]]" in prompt:
        return GARBAGE, "stop", Usage(read, 1)
    text = f"echo: {prompt}"
    words = text.split()
    if limit is None or len(words) <= limit:
        return text, "stop", Usage(read, len(words))
    return " ".join(words[:limit]), "length", Usage(read, limit)


def _last_user_text(messages: object, param: str) -> str:
    if not isinstance(messages, list) or not messages:
        raise BadBody(param, f"{param} must be a list with at least one message")
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return _text_of(message.get("content"), param)
    raise BadBody(param, f"{param} has no message of the role user")


def _text_of(content: object, param: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    raise BadBody(param, f"a message's content in {param} must be text or a list of parts")


def _texts(given: object, param: str) -> list[str]:
    """Read a prompt in any of its forms: a text, texts, tokens, lists of tokens."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(isinstance(item, str) for item in given):
            return given
        if all(isinstance(item, int) for item in given):
            return [" ".join(map(str, given))]
        if all(isinstance(item, list) for item in given):
            return [" ".join(map(str, tokens)) for tokens in given]
    raise BadBody(param, f"{param} must be text, a list of texts or tokens")


def _limit(body: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or value < 1:
            raise BadBody(name, f"{name} must be a whole number of at least 1")
        return value
    return None


def _copies(body: dict[str, Any]) -> int:
    copies = body.get("n") or 1
    if not isinstance(copies, int) or not 1 <= copies <= MOST_COPIES:
        raise BadBody("n", f"n must be a whole number from 1 to {MOST_COPIES}")
    return copies


def _vector(text: str, *, encoded: bool) -> Sequence[float] | str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    floats = [byte / 255 for byte in digest[:8]]
    return base64.b64encode(struct.pack("<8f", *floats)).decode() if encoded else floats
