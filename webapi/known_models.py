"""The models that jobs may name, and whether a prompt is surely too long for one."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from tokenizers import Tokenizer

from models import engines
from models.db import Database

log = structlog.get_logger("stoker.web")

MOST_COUNTED = 2_000_000
"""Bytes of one request that go through a tokenizer: it takes about a second for them."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that jobs may name. `max_model_len` is in tokens; `tokenizer` a folder or Hugging Face id."""

    name: str
    max_model_len: int | None = None
    tokenizer: str | None = None

    def surely_too_long(self, texts: Iterable[str]) -> int | None:
        """Return how many tokens the first text has that has more than the model takes, None when all may fit.

        Counted, never estimated (vocabularies have tokens of more than 100 bytes): without a tokenizer, or for very
        long texts, the engine has to judge.
        """
        if self.max_model_len is None or (loaded := _load(self.tokenizer)) is None:
            return None
        left = MOST_COUNTED
        for text in texts:
            size = len(text.encode())
            if size <= self.max_model_len:
                continue  # no token is shorter than a byte
            left -= size
            if left < 0:
                return None
            tokens = len(loaded.encode(text, add_special_tokens=False))
            if tokens > self.max_model_len:
                return tokens
        return None


@functools.lru_cache(maxsize=32)
def _load(folder: str | None) -> Tokenizer | None:
    if not folder:
        return None
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  # the library raises nothing narrower
        log.warning("tokenizer cannot be read", file=str(file), kind=type(error).__name__)
        return None


class KnownModels:
    """The known models, read from the database at most every `keep` seconds, and again before one is called unknown."""

    def __init__(self, database: Database, keep: float = 2.0) -> None:
        self._database = database
        self._keep = keep
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._known: dict[str, KnownModel] = {}
        self._read_at = -keep

    def get(self, name: str) -> KnownModel | None:
        """Return a model, None when it is unknown."""
        if name not in self._known:
            self._read()
        elif time.monotonic() - self._read_at > self._keep and self._reading.acquire(blocking=False):
            # One reads for all: a crowd is not to read at the same moment.
            try:
                self._read()
            finally:
                self._reading.release()
        return self._known.get(name)

    def names(self) -> list[str]:
        """Return the names last read."""
        return sorted(self._known)

    def _read(self) -> None:
        with self._database.reading() as tx:
            rows = engines.known(tx)
        with self._lock:
            self._known = {name: KnownModel(row.name, row.max_model_len, row.tokenizer) for name, row in rows.items()}
            self._read_at = time.monotonic()


def texts(endpoint: str, body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a request that the model must take each in one piece."""
    if endpoint == "/v1/chat/completions":
        yield "\n".join(_of_messages(body.get("messages")))
        return
    given = body.get("prompt" if endpoint == "/v1/completions" else "input")
    if isinstance(given, str):
        yield given
    elif isinstance(given, list):
        yield from (item for item in given if isinstance(item, str))


def _of_messages(messages: object) -> Iterator[str]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
