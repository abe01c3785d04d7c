"""PgBouncer in transaction mode between a service and PostgreSQL: `?pgbouncer=true` in the database's URL.

A session then is not ours: each transaction gets another one, which others had before. So nothing may be set on it,
prepared in it or locked by it beyond a transaction. What our sessions are told elsewhere PgBouncer tells them itself,
once each, by `connect_query`; `stoker doctor` looks whether it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

_OPTION = "pgbouncer"
_YES = frozenset({"true", "1", "yes"})


def direct(url: str | URL) -> tuple[URL, bool]:
    """Return a URL without the option, as PostgreSQL's programs take it, and whether it names a PgBouncer."""
    parsed = make_url(url)
    said = parsed.query.get(_OPTION, "")
    return parsed.difference_update_query([_OPTION]), said in _YES


def connect_query(wanted: Mapping[str, str]) -> str:
    """Return the statements that tell a session these settings, as PgBouncer's `connect_query` has them."""
    return "; ".join(f"SET {name} = ''{value}''" for name, value in wanted.items())


def untold(tx: sa.Connection, wanted: Mapping[str, str]) -> list[str]:
    """Return the names of those settings that a session does not have; of a server that does not know one, nothing."""
    told = sa.text("SELECT name, setting, unit FROM pg_settings WHERE name = ANY (:names)")
    rows = tx.execute(told, {"names": list(wanted)}).all()
    return sorted(row.name for row in rows if _plain(row.setting, row.unit) != _plain(wanted[row.name], None))


def known(tx: sa.Connection, names: Iterable[str]) -> set[str]:
    """Return which of these settings the server has."""
    return set(
        tx.execute(sa.text("SELECT name FROM pg_settings WHERE name = ANY (:names)"), {"names": list(names)}).scalars()
    )


def _plain(value: str, unit: str | None) -> str:
    """Return a setting so that `60s`, and 60000 with the unit ms, are the same."""
    if value.endswith("s") and value[:-1].isdigit():
        return f"{int(value[:-1])} s"
    if unit == "ms":
        return f"{int(value) / 1000:g} s"
    return f"{value} s" if unit == "s" else value
