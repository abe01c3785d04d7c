"""The requests that engines are asked in tests."""

from __future__ import annotations

import gc
import json
import threading
from dataclasses import dataclass, replace
from typing import Any

from tasks.engines.base import Engine, Outcome, Request

CHAT = "/v1/chat/completions"
NAME = "tiny"
CONTEXT = 512


@dataclass
class Subject:
    """An engine and how to make it quick, slow or endless."""

    engine: Engine
    real: bool

    def chat(self, job: str, text: str = "hello there", **rest: Any) -> Request:
        """Make a chat request."""
        timeout = rest.pop("timeout", 60.0)
        lane = rest.pop("lane", "standard")
        body = {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 3, **rest}
        return Request(job, CHAT, json.dumps(body), lane, timeout)

    def slow(self, job: str, seconds: int = 1, **rest: Any) -> Request:
        """Make a request that takes about a second, or longer where the engine can be told."""
        if self.real:
            return self.chat(job, max_tokens=400, ignore_eos=True, **rest)
        return self.chat(job, f"[[slow:{seconds}]] hello", **rest)

    def long(self, job: str, words: int = 39, **rest: Any) -> Request:
        """Make a request whose stream takes about a second, or longer where the engine can be told."""
        return self.slow(job, **rest) if self.real else self.chat(job, "word " * words, max_tokens=400, **rest)

    def ask(self, *requests: Request, stop: threading.Event | None = None) -> list[Outcome]:
        """Run requests to the end."""
        return list(self.engine.generate(requests, stop or threading.Event()))


def heard(request: Request, **options: Any) -> tuple[Request, list[Any]]:
    """Ask for a stream: the request, and the list that its events come into."""
    events: list[Any] = []
    body = json.dumps({**json.loads(request.body), "stream": True, **options})
    return replace(request, body=body, emit=lambda data: events.append(json.loads(data))), events


def close(engine: Engine) -> None:
    """Close a real vLLM and clear it away here, where its sockets may still complain of being left open."""
    engine.close()
    gc.collect()
