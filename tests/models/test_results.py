"""Results: whatever an engine answers can be stored, and is read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from models import results
from models.db import Database
from models.ends import Settled
from models.results import NewResult
from tests.models import given

TEXTS = st.text(st.characters(exclude_categories=()))


@examples(TEXTS)
def test_storable_text_keeps_its_meaning_as_json(text: str) -> None:
    """NUL and lone surrogates become their JSON escapes: the parsed value is the same, and UTF-8 can hold it."""
    raw = json.dumps(text, ensure_ascii=False)
    stored = results.storable(raw)
    assert stored is not None
    assert "\x00" not in stored
    stored.encode()
    assert json.loads(stored) == text


def test_storable_keeps_nothing_as_nothing() -> None:
    """No body stays no body."""
    assert results.storable(None) is None


@pytest.mark.parametrize(
    "text",
    ["", "\x00", "\ud800 alone \udfff", "é 汉 🚀", "x" * 5_000_000, "\x00\ud800" * 100_000],
    ids=lambda text: repr(text[:20]),
)
def test_any_answer_is_stored_and_read_back(database: Database, text: str) -> None:
    """NUL, lone surrogates and five megabytes: what the engine meant is what the client gets."""
    batch = given.running(database, given.engine(database))
    (job,) = batch.jobs
    body = json.dumps({"text": text}, ensure_ascii=False)
    given.settled(database, batch.id, [given.answered(job.id, body)])
    (row,) = given.rows(database, results.table)
    assert json.loads(row.body) == {"text": text}


def test_a_long_or_hostile_error_is_stored(database: Database) -> None:
    """The code is cut to what its column holds; the message is escaped."""
    batch = given.running(database, given.engine(database))
    (job,) = batch.jobs
    outcome = NewResult(500, code="c" * 100, message="\x00\ud800")
    given.settled(database, batch.id, [Settled(job.id, "failed", outcome)])
    (row,) = given.rows(database, results.table)
    assert (row.error_code, row.error_message) == ("c" * 64, "\\u0000\\ud800")
