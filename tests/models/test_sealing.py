"""Secrets at rest: sealed by the newest key, opened by every key, and never readable without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.sealing import MARK, NoSecretKey, Seal, new_key, seal_of
from stoker.settings import load

SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


def test_what_is_sealed_is_not_readable_and_comes_back() -> None:
    """The same secret is sealed differently each time, and each opens to the secret."""
    seal = Seal([new_key()])
    sealed = {seal.close(SECRET) for _ in range(5)}
    assert len(sealed) == 5
    assert all(text.startswith(MARK) and SECRET not in text for text in sealed)
    assert {seal.open(text) for text in sealed} == {SECRET}


def test_what_an_older_version_left_plain_is_opened_as_it_is() -> None:
    """Even by a process without a key."""
    assert Seal([]).open(SECRET) == SECRET


def test_without_a_key_nothing_is_sealed_or_opened() -> None:
    """The error says what to set."""
    sealed = Seal([new_key()]).close(SECRET)
    for ask in (lambda: Seal([]).close(SECRET), lambda: Seal([]).open(sealed)):
        with pytest.raises(NoSecretKey, match="STOKER_SECRET_KEY"):
            ask()


def test_another_key_opens_nothing() -> None:
    """Nor does any key open what was changed; the error repeats neither."""
    sealed = Seal([new_key()]).close(SECRET)
    for seal, text in ((Seal([new_key()]), sealed), (Seal([new_key()]), MARK + "x"), (Seal([new_key()]), MARK + "é")):
        with pytest.raises(NoSecretKey) as caught:
            seal.open(text)
        assert text.removeprefix(MARK) not in str(caught.value).split()


def test_a_key_is_replaced_step_by_step() -> None:
    """Old and new together open everything; renewed by the new one, the old one is not needed."""
    old, new = new_key(), new_key()
    sealed = Seal([old]).close(SECRET)
    both = Seal([new, old])
    renewed = both.renew(sealed)
    assert (both.open(sealed), Seal([new]).open(renewed)) == (SECRET, SECRET)
    assert both.renew(renewed) == renewed
    assert Seal([new]).open(both.renew(SECRET)) == SECRET


def test_derived_keys_tell_nothing_of_one_another() -> None:
    """Each purpose has its own, the same in every process, newest first."""
    first, second = new_key(), new_key()
    made = Seal([first, second]).derived("sessions")
    assert made == Seal([first]).derived("sessions") + Seal([second]).derived("sessions")
    assert len({*made, *Seal([first, second]).derived("other")}) == 4
    assert Seal([]).derived("sessions") == []


def test_the_seal_of_settings(tmp_path: Path) -> None:
    """The variable comes first, then the data folder's file; without either there is no key."""
    in_file, in_variable = new_key(), new_key()
    with pytest.raises(NoSecretKey):
        seal_of(load(data=tmp_path)).close("x")
    (tmp_path / "secret-key").write_text(in_file + "\n")
    assert Seal([in_file]).open(seal_of(load(data=tmp_path)).close("x")) == "x"
    assert Seal([in_variable]).open(seal_of(load(data=tmp_path, secret_key=in_variable)).close("x")) == "x"


@pytest.mark.parametrize("text", ["short", "é" * 44, "A" * 44])
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    """A file that holds no key is an error with its path, not a service that keeps no secrets; its text is not told."""
    (tmp_path / "secret-key").write_text(text, encoding="utf-8")
    with pytest.raises(NoSecretKey, match="secret-key cannot be used") as caught:
        seal_of(load(data=tmp_path))
    assert text not in str(caught.value)
