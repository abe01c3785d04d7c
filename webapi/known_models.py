"""The models that jobs may name, and whether a prompt is surely too long for one."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from tokenizers import Tokenizer

from models import engines
from models.db import Database

log = structlog.get_logger("stoker.web")

DEFAULT_ANSWER_TOKENS = 256
BYTES_PER_TOKEN_AT_MOST = 16

_RUNS = re.compile(r"(.)\1+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that jobs may name. `max_model_len` is in tokens; `tokenizer` a folder or Hugging Face id."""

    name: str
    max_model_len: int | None = None
    tokenizer: str | None = None

    def surely_too_long(self, text: str) -> int | None:
        """Return how many tokens a text has (or has at least) when the model cannot take that many, else None."""
        if self.max_model_len is None:
            return None
        if len(text.encode()) <= self.max_model_len:
            return None  # no token is shorter than a byte
        # Tokenizers have tokens for long runs of one character (blanks, dashes); else no token is longer than that.
        least = len(_RUNS.sub(r"\1", text).encode()) // BYTES_PER_TOKEN_AT_MOST
        if least <= self.max_model_len:
            least = _count(self.tokenizer, text) or least
        return least if least > self.max_model_len else None


def _count(tokenizer: str | None, text: str) -> int | None:
    loaded = _load(tokenizer) if tokenizer else None
    return len(loaded.encode(text, add_special_tokens=False)) if loaded else None


@functools.lru_cache(maxsize=32)
def _load(folder: str) -> Tokenizer | None:
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
        self._known: dict[str, KnownModel] = {}
        self._read_at = -keep

    def get(self, name: str) -> KnownModel | None:
        """Return a model, None when it is unknown."""
        if time.monotonic() - self._read_at > self._keep or name not in self._known:
            self._read()
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


def estimate(characters: int, answer_tokens: int | None) -> int:
    """Return the tokens that a job counts for in a batch: its text's, at four characters each, and its answer's."""
    wanted = DEFAULT_ANSWER_TOKENS if answer_tokens is None else answer_tokens
    return max(1, characters // 4 + wanted)
