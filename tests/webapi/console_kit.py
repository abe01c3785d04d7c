"""A browser that is logged in to the console, for the tests of its pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import keys
from models.db import Database

INLINE = re.compile(r"<script(?! src=)|<style|\bstyle=|\bon\w+=")
"""What the policy of pages forbids."""


class Browser:
    """A browser with the cookie of a login."""

    def __init__(
        self,
        client: FlaskClient,
        database: Database,
        owner: str = "ada",
        scopes: Iterable[str] = keys.USUAL,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        """Make a key for an owner and log in with it."""
        self.client = client.application.test_client()
        with database.transaction() as tx:
            self.key = keys.create(tx, owner, scopes=scopes, limits=limits)
        form = {"key": self.key.secret, "csrf": _field(self.client.get("/dashboard/login").text, "csrf")}
        assert self.client.post("/dashboard/login", data=form).status_code == 303

    def get(self, path: str, status: int = 200) -> str:
        """Return a page, which has nothing in it that its policy forbids."""
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        assert not INLINE.search(answer.text)
        return answer.text

    def token(self) -> str:
        """Return what every change of this login repeats."""
        return str(re.findall(r'name="csrf" content="([^"]*)"', self.client.get("/dashboard").text)[0])

    def send(self, path: str, form: Mapping[str, Any] | None = None) -> TestResponse:
        """Send a form with the token of this login."""
        return self.client.post(path, data={"csrf": self.token(), **(form or {})})

    def shown(self, path: str, form: Mapping[str, Any] | None = None, status: int = 200) -> str:
        """Send a form and return the page that comes of it, behind the way that it leads."""
        answer = self.send(path, form)
        if answer.status_code == 303:  # See Other
            return self.get(answer.headers["Location"], status)
        assert answer.status_code == status, answer.text
        assert answer.headers["Cache-Control"] == "no-store"
        assert not INLINE.search(answer.text)
        return answer.text


def once_of(page: str) -> str:
    """Return what tells the first form of a page from all others."""
    return _field(page, "once")


def _field(page: str, name: str) -> str:
    return str(re.findall(rf'name="{name}" value="([^"]+)"', page)[0])
