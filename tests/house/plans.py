"""How a database runs the SQL of the real functions: statements are captured and explained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from psycopg import sql

from models.db import Database


@dataclass(frozen=True, slots=True)
class Access:
    """One way into one table: by an index between bounds, through a whole index, or (None) through the table."""

    table: str
    index: str | None
    bounds: str

    @property
    def whole(self) -> bool:
        """Tell whether everything is read."""
        return not self.bounds


@dataclass(slots=True)
class Capture:
    """The statements that were run, with their parameters."""

    statements: list[tuple[str, Any]] = field(default_factory=list)

    def note(self, statement: str, parameters: Any) -> None:
        """Keep a statement that reads or changes rows in place."""
        if statement.lstrip().upper().startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            self.statements.append((statement, parameters))


@contextmanager
def captured(database: Database) -> Iterator[Capture]:
    """Note every statement that is run inside."""
    notes = Capture()

    def listener(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        notes.note(statement, parameters)

    sa.event.listen(database.engine, "before_cursor_execute", listener)
    try:
        yield notes
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", listener)


def statements_of(database: Database, work: Callable[[sa.Connection], object]) -> list[tuple[str, Any]]:
    """Run `work`, undo it, and return its statements."""
    with captured(database) as notes, database.engine.connect() as tx:
        work(tx)
        tx.rollback()
    return notes.statements


def accesses(database: Database, work: Callable[[sa.Connection], object], *, generic: bool = False) -> list[Access]:
    """Return every access to a table that the plans of `work` contain; `generic`: planned without the values."""
    statements = statements_of(database, work)
    assert statements, "nothing was run"
    with database.reading() as tx:
        explain = _explain_postgresql if database.dialect == "postgresql" else _explain_sqlite
        if database.dialect == "postgresql":
            tx.exec_driver_sql(
                f"SET LOCAL plan_cache_mode = {'force_generic_plan' if generic else 'force_custom_plan'}"
            )
        return [access for statement, parameters in statements for access in explain(tx, statement, parameters)]


def _explain_sqlite(tx: sa.Connection, statement: str, parameters: Sequence[Any]) -> Iterator[Access]:
    one = parameters[0] if isinstance(parameters, list) else parameters
    for *_, detail in tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", one):
        found = re.match(
            r"(SCAN|SEARCH) (\w+)(?: USING (?:COVERING )?(?:INDEX (\w+)|(INTEGER PRIMARY KEY)))?(?: \((.*)\))?", detail
        )
        if found and found[2] not in {"CONSTANT", "SUBQUERY", "json_each", "hop"}:
            yield Access(found[2], found[3] or found[4], found[5] or "")


def _explain_postgresql(tx: sa.Connection, statement: str, parameters: Any) -> Iterator[Access]:
    values = parameters[0] if isinstance(parameters, list) else parameters
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    numbered = re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", statement).replace("%%", "%")
    raw = tx.connection.driver_connection
    assert raw is not None
    given = ", ".join(sql.Literal(values[name]).as_string(raw) for name in names)
    raw.execute(f"PREPARE explained AS {numbered}".encode())
    try:
        ((plan,),) = raw.execute(f"EXPLAIN (FORMAT JSON) EXECUTE explained{f'({given})' if given else ''}".encode())
    finally:
        raw.execute("DEALLOCATE explained")
    yield from _walk((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


def _walk(node: Mapping[str, Any]) -> Iterator[Access]:
    bounds = node.get("Index Cond", "")
    if node["Node Type"] == "Bitmap Heap Scan":
        for below in _indexes(node):
            yield Access(node["Relation Name"], below["Index Name"], below.get("Index Cond", ""))
        return
    if "Relation Name" in node and node["Node Type"] != "ModifyTable":
        yield Access(node["Relation Name"], node.get("Index Name"), bounds)
    for below in node.get("Plans", ()):
        yield from _walk(below)


def _indexes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for below in node.get("Plans", ()):
        if "Index Name" in below:
            yield below
        yield from _indexes(below)
