"""The reference of the HTTP API, docs/api-reference.md, from the document that the service gives of itself.

`python -m webapi.api_reference docs` writes the page; a test holds that it is what is generated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from webapi import openapi
from webapi.app import register

PAGE = "api-reference.md"
_HEAD = """\
# Every call of the HTTP API

Generated from the OpenAPI document (`make docs`), which a running service has at `/openapi.json`; `/docs` lets one try.
How the calls go together: [the API in words](api.md). Each may answer with the [errors](api.md#errors) that hold of all
of them: 401, 403, 422 (on OpenAI's paths 400), 429, 500, 503. Text in italics is what an object is called below.
"""
_OBJECTS = """\
## Objects

A field with a question mark may be left out, or is `null`. Numbers in brackets are bounds.
"""
_WORDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
_MOST_VALUES = 12
"""Values of a field that are all named; of more, the first few."""
_ENDLESS = 10**9
"""Bounds beyond it are those of the database, and tell a reader nothing."""

Schema = Mapping[str, Any]


def document() -> dict[str, Any]:
    """Return the OpenAPI document, without a service."""
    app = openapi.new_app("webapi", "")
    register(app)
    made: dict[str, Any] = app.api_doc
    return made


def page(api: Mapping[str, Any]) -> str:
    """Return the page of a document."""
    parts = [_HEAD, *(_section(api, tag) for tag in api["tags"]), _OBJECTS, *_table("object | fields", _objects(api))]
    return "\n".join(parts).rstrip() + "\n"


def _section(api: Mapping[str, Any], tag: Mapping[str, Any]) -> str:
    rows = [
        _call(method, path, operation)
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
        if operation["tags"] == [tag["name"]]
    ]
    return "\n".join(
        [
            f"## {tag['name'].title()}\n",
            f"{tag.get('description', '')}\n".lstrip(),
            *_table("call | does | takes | answers", rows),
        ]
    ).replace("\n\n\n", "\n\n")


def _table(head: str, rows: Iterator[str] | list[str]) -> list[str]:
    return [f"| {head} |", f"|{'---|' * (head.count('|') + 1)}", *rows, ""]


def _call(method: str, path: str, operation: Mapping[str, Any]) -> str:
    taken = [_parameter(one) for one in operation.get("parameters", []) if one["in"] != "path"]
    taken += [_content(operation["requestBody"])] if "requestBody" in operation else []
    answers = [
        f"{status} {_content(answer)}".strip()
        for status, answer in operation["responses"].items()
        if status.startswith(("2", "3"))
    ]
    return f"| `{method.upper()} {path}` | {operation['summary']} | {', '.join(taken)} | {', '.join(answers)} |"


def _parameter(parameter: Mapping[str, Any]) -> str:
    kind = _kind(parameter["schema"])
    return f"`{parameter['name']}` ({kind}{', in the header' if parameter['in'] == 'header' else ''})"


def _content(holder: Mapping[str, Any]) -> str:
    """Return what a body or an answer is: its objects, or else its media types."""
    content = holder.get("content", {})
    kinds = {_kind(one.get("schema", {})) for one in content.values()}
    named = sorted(kind for kind in kinds if kind.startswith("*"))
    return " or ".join(named or sorted(f"`{media}`" for media in content))


def _objects(api: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in sorted(api["components"]["schemas"].items()):
        required = set(schema.get("required", []))
        fields = [
            f"`{field}{'' if field in required else '?'}` {_kind(kind)}".strip()
            for field, kind in schema.get("properties", {}).items()
        ]
        yield f"| *{name}* | {', '.join(fields) or 'anything'} |"


def _kind(schema: Schema) -> str:
    """Return what a value is, in words."""
    if "$ref" in schema:
        return f"*{schema['$ref'].rpartition('/')[2]}*"
    several = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if several:
        return " or ".join(dict.fromkeys(kind for one in several if (kind := _kind(one)) not in {"null", ""}))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        more = ", ..." if len(values) > _MOST_VALUES else ""
        return " ".join(f"`{value}`" for value in values[:_MOST_VALUES]) + more
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {})) or 'anything'}"
    return _WORDS.get(schema.get("type", ""), "object" if schema.get("type") else "") + _bounds(schema)


def _bounds(schema: Schema) -> str:
    told = {name: schema[name] for name in ("minimum", "maximum") if abs(schema.get(name, _ENDLESS)) < _ENDLESS}
    least, most = (f"{told[name]:,g}" if name in told else "" for name in ("minimum", "maximum"))
    if least and most:
        return f" [{least} to {most}]"
    return f" [{'from ' if least else 'up to '}{least or most}]" if told else ""


def main(folder: Path) -> None:
    """Write the page into a folder."""
    (folder / PAGE).write_text(page(document()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
