"""What a form of the console says, or an address behind its question mark; and what was wrong with it, by field."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from werkzeug.datastructures import MultiDict

from webapi.errors import FieldError, Problem, found_by, from_pydantic, invalid
from webapi.keyed import KEYLESS, Once
from webapi.sessions import CSRF_FIELD

T = TypeVar("T", bound=BaseModel)

ONCE = "once"
"""The field by which a form that is sent twice, by a double click say, has its effect once."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")


class Fields:
    """The fields of a form, or of an address; blanks around a text do not count."""

    def __init__(self, given: MultiDict[str, str]) -> None:
        self._given = given

    def text(self, name: str) -> str:
        """Return a text, empty where there is none. Raises Problem 422 for what a database does not take."""
        return _checked(name, self._given.get(name, "").strip())

    def texts(self, name: str) -> list[str]:
        """Return the texts of a field that may come several times. Raises Problem 422."""
        return [_checked(name, text) for text in self._given.getlist(name)]

    def number(self, name: str) -> float | None:
        """Return a number, None where there is none. Raises Problem 422."""
        if not (text := self.text(name)):
            return None
        try:
            return float(text)
        except ValueError:
            raise invalid(name, "must be a number") from None

    def moment(self, name: str) -> float | None:
        """Return a time (UTC, as `2026-11-28T12:30`) in seconds since 1970, None where there is none.

        Raises Problem 422.
        """
        if not (text := self.text(name)):
            return None
        try:
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        except (ValueError, OverflowError):
            raise invalid(name, "must be a time like 2026-11-28T12:30") from None

    def require(self, *names: str) -> None:
        """Raise Problem 422, with all of these fields that are empty."""
        if empty := [name for name in names if not self.text(name)]:
            raise wrong_with((name, "must not be empty") for name in empty)

    def once(self, scope: str) -> Once:
        """Return this form as something that is done once; filled in otherwise it is another."""
        if not _TOKEN.fullmatch(token := self._given.get(ONCE, "")):
            return KEYLESS
        said = [scope, *(f"{name}={text}" for name, text in self._given.items(multi=True) if name != CSRF_FIELD)]
        fingerprint = hashlib.sha256("\x00".join(said).encode()).hexdigest()
        return Once(f"console-{token}-{fingerprint[:16]}", fingerprint)


def new_token() -> str:
    """Return what tells one form that is shown from all others."""
    return secrets.token_urlsafe(16)


def checked(kind: type[T], given: Mapping[str, Any]) -> T:
    """Return what was given as what the API takes. Raises Problem 422."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise from_pydantic(found_by(error)) from None


def wrong_with(found: Iterable[tuple[str, str]]) -> Problem:
    """Return the 422 for fields and what is wrong with each."""
    errors = [FieldError(name, why, "invalid_value") for name, why in found]
    return Problem(
        422, "invalid_value", "; ".join(f"{error.field}: {error.message}" for error in errors), errors=errors
    )


def wrong(problem: Problem) -> dict[str, str]:
    """Return what is wrong by field; under the empty name what is wrong with none of them."""
    if not problem.errors:
        return {"": problem.detail}
    return {error.field.partition(".")[0]: error.message for error in reversed(problem.errors)}


def _checked(name: str, text: str) -> str:
    if "\x00" in text:
        raise invalid(name, "must not have a NUL character")
    return text
