"""Known models, and prompts that are surely too long for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from models import engines
from models.db import Database
from webapi.known_models import KnownModel, KnownModels, texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tokenizer in which each word is a token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_tokens_are_counted_where_there_is_a_tokenizer(tokenizer: str) -> None:
    """At the limit it fits, one more is too long, and the answer says how many there are."""
    model = KnownModel("m", 10, tokenizer)
    assert model.surely_too_long(["longword " * 10]) is None
    assert model.surely_too_long(["a", "longword " * 11]) == 11


@pytest.mark.parametrize("folder", [None, "some/hub-name", "/nowhere"])
def test_without_a_tokenizer_the_engine_judges(folder: str | None) -> None:
    """Nobody knows how long a vocabulary's tokens are: nothing is refused by its bytes."""
    assert KnownModel("m", 10, folder).surely_too_long(["ab" * 10_000]) is None


def test_without_a_context_length_nothing_is_too_long(tokenizer: str) -> None:
    """An engine that never told its context takes any prompt."""
    assert KnownModel("m", None, tokenizer).surely_too_long(["a " * 10_000]) is None


def test_tokens_of_any_length_are_counted(tokenizer: str) -> None:
    """A prompt of a few very long tokens fits: it is counted, not guessed from its bytes."""
    assert KnownModel("m", 10, tokenizer).surely_too_long(["ab" * 500_000]) is None


def test_no_more_than_two_million_bytes_are_counted(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the engine judges; texts that surely fit use nothing of it up."""
    model = KnownModel("m", 10, tokenizer)
    assert model.surely_too_long(["a " * 999_999]) == 999_999
    assert model.surely_too_long(["a " * 1_000_001]) is None
    monkeypatch.setattr("webapi.known_models.MOST_COUNTED", 50)
    assert model.surely_too_long(["short"] * 100 + ["a " * 20]) == 20
    assert model.surely_too_long(["longest-of-words"] * 4 + ["a " * 20]) is None


def test_a_broken_tokenizer_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """A file that cannot be read counts as none."""
    (tmp_path / "tokenizer.json").write_text("{}")
    assert KnownModel("m", 10, str(tmp_path)).surely_too_long(["ab" * 80]) is None


@given(st.text(max_size=50), st.integers(1, 100))
def test_a_text_of_no_more_bytes_than_the_context_is_never_refused(tokenizer: str, text: str, context: int) -> None:
    """No token is shorter than a byte."""
    model = KnownModel("m", max(context, len(text.encode())), tokenizer)
    assert model.surely_too_long([text]) is None


def test_models_are_read_again_before_one_is_unknown(database: Database) -> None:
    """A model that was registered a moment ago is known, however fresh the memory is."""
    known = KnownModels(database, keep=1000)
    assert known.get("new") is None
    with database.transaction() as tx:
        engines.remember(tx, "new", 77, None)
    assert known.get("new") == KnownModel("new", 77)
    assert known.names() == ["new"]


def test_texts_of_each_endpoint() -> None:
    """A chat is one text, a list of prompts or inputs is several, and token ids are none."""
    parts = [{"type": "text", "text": "b"}, {"type": "image_url"}]
    chat = {"messages": [{"content": "a"}, {"content": parts}, {"content": None}, 7]}
    assert list(texts("/v1/chat/completions", chat)) == ["a\nb"]
    assert list(texts("/v1/completions", {"prompt": ["a", "b"]})) == ["a", "b"]
    assert list(texts("/v1/completions", {"prompt": [1, 2]})) == []
    assert list(texts("/v1/embeddings", {"input": "a"})) == ["a"]
