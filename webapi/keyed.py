"""Idempotency-Keys of the calls that make something: the same request twice makes one thing, and has one answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from flask import g, request

from models import idempotency
from webapi.context import here
from webapi.errors import invalid

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotency-Replayed": "true"}
"""What an answer says that was given before."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def key() -> str | None:
    """Return the key of this request, if it has one. Raises Problem 422."""
    given = request.headers.get(HEADER)
    return None if given is None else checked(given, HEADER)


def checked(given: str, name: str) -> str:
    """Return a key that may be one. Raises Problem 422."""
    if not _KEY.fullmatch(given):
        raise invalid(name, "must be 1 to 255 visible ASCII characters without blanks")
    return given


@dataclass(frozen=True, slots=True)
class Once:
    """A request that has an effect once: `fingerprint` tells it from another with the same key."""

    key: str | None
    fingerprint: str

    def before(self) -> str | None:
        """Return the answer that this request got before, if any."""
        if self.key is None:
            return None
        with here().database.reading() as tx:
            return idempotency.answered(tx, g.owner, self.key, self.fingerprint)

    def answer(self, tx: sa.Connection, make: Callable[[], str]) -> tuple[str, bool]:
        """Return what `make` answers, or what it answered before (and True). Raises KeyReused and KeyBusy."""
        if self.key is None:
            return make(), False
        if (before := idempotency.begin(tx, g.owner, self.key, self.fingerprint)) is not None:
            return before, True
        return self._made(tx, self.key, make), False

    def anew(self, tx: sa.Connection, before: str, make: Callable[[], str]) -> str:
        """Return what `make` answers now, for what was answered `before` names what is gone. Raises KeyBusy."""
        if self.key is None:
            return make()
        idempotency.renew(tx, g.owner, self.key, before)
        return self._made(tx, self.key, make)

    def _made(self, tx: sa.Connection, key: str, make: Callable[[], str]) -> str:
        made = make()
        idempotency.finish(tx, g.owner, key, made)
        return made

    def release(self, tx: sa.Connection, owner: str, answer: str) -> None:
        """Forget that this was answered, in the transaction that takes the work back."""
        if self.key is not None:
            idempotency.release(tx, owner, self.key, answer)


KEYLESS = Once(None, "")
"""A request that has an effect each time it comes."""


def once(raw: bytes, scope: str = "") -> Once:
    """Return this request, which is told from others by its body and by the kind of thing it makes. Raises Problem 422.

    A job's has no `scope`: what older versions remember is still known.
    """
    return Once(key(), hashlib.sha256(f"{scope} ".encode() + raw if scope else raw).hexdigest())
