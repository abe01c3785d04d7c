"""Every operation that the application's own document names, so that a new one is tested without being listed."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from models import schema
from models.db import Database
from stoker.settings import load
from webapi.app import create_app
from webapi.context import EXTENSION

JSON = "application/json"


class Route(NamedTuple):
    """One operation: `path` has its parameters in braces."""

    method: str
    path: str
    operation: str
    parameters: tuple[str, ...]
    takes_json: bool

    def at(self, **values: str) -> str:
        """Return the path with its parameters filled in."""
        return self.path.format(**values)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@functools.cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load(database_url=f"sqlite:///{Path(folder) / 'stoker.db'}", data=folder, engine="fake")
        database = Database(settings.database)
        schema.upgrade(database)
        database.close()
        app = create_app(settings)
        try:
            return dict(app.test_client().get("/openapi.json").json)
        finally:
            app.extensions[EXTENSION].close()


@functools.cache
def routes() -> tuple[Route, ...]:
    """Return every operation of the document."""
    found = []
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            takes = JSON in operation.get("requestBody", {}).get("content", {})
            names = tuple(re.findall(r"{(\w+)}", path))
            found.append(Route(method.upper(), path, operation["operationId"], names, takes))
    return tuple(found)
