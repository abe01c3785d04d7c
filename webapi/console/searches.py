"""What is searched for above a list: an id or how it begins, a pair of the metadata, and the list's own fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlencode

from flask import request
from werkzeug.wrappers import Response as Answer

from models.bulks import BATCH_KIND, BULK_KIND
from models.db import is_id
from webapi import paging
from webapi.console import door
from webapi.errors import invalid

ID, TAG = "q", "tag"
"""The fields for an id, or how one begins, and for one pair of the metadata, as key=value."""

_BEGINS = re.compile(r"(?:([a-z]+)_)?([0-9a-f]{1,32})")
_PATHS = {
    "job": f"{door.HOME}/jobs",
    BULK_KIND: f"{door.HOME}/bulks",
    BATCH_KIND: f"{door.HOME}/bulks",
}


@dataclass(frozen=True, slots=True)
class Search:
    """The fields above a list that say something, by name; `path` is the list's."""

    path: str
    asked: dict[str, str]
    after: str | None

    def address(self, **more: str | None) -> str:
        """Return the address that shows this search, with more in it: what to start behind, say."""
        said = self.asked | {name: text for name, text in more.items() if text}
        return f"{self.path}?{urlencode(said)}" if said else self.path

    def led_to(self) -> Answer | None:
        """Return the answer that leads to what has the whole id that is looked for; None where it is no whole one."""
        sought = self.asked.get(ID, "").lower()
        found = next((path for kind, path in _PATHS.items() if is_id(kind, sought)), None)
        return None if found is None else door.lead_to(f"{found}/{sought}")

    def begins(self, *kinds: str) -> tuple[str, ...]:
        """Return how the ids that are looked for begin, one of each kind that is meant; empty for all.

        Raises Problem 422.
        """
        if (sought := self.asked.get(ID)) is None:
            return ()
        match = _BEGINS.fullmatch(sought.lower())
        if match is None or match[1] not in {None, *kinds}:
            begin = " or ".join(f"{kind}_" for kind in kinds)
            raise invalid(ID, f"must be an id, or how one begins: {begin} and hex digits")
        return tuple(f"{kind}_{match[2]}" for kind in kinds if match[1] in {None, kind})

    def query(self, *names: str) -> dict[str, str | None]:
        """Return the parameters of the API's list that these fields and the pair of the metadata stand for.

        Raises Problem 422.
        """
        given = {name: self.asked.get(name) for name in names} | {"after": self.after}
        if (tag := self.asked.get(TAG)) is not None:
            key, sign, value = tag.partition("=")
            if not key.strip() or not sign:
                raise invalid(TAG, "write key=value, one pair of the metadata given at submission")
            given[f"{paging.PREFIX}{key.strip()}"] = value.strip()
        return given


def of_request(path: str, *names: str) -> Search:
    """Return what the address of this request asks for; blanks around a text do not count."""
    asked = {name: text for name in (ID, *names, TAG) if (text := request.args.get(name, "").strip())}
    return Search(path, asked, request.args.get("after") or None)
