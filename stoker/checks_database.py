"""What `stoker doctor` looks at in the database itself: does it answer, is it the right one, who holds it up."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from models import diagnosis, pooling, postgres_session, schema, sweeps
from models.db import AnyRow, Database
from models.errors import DatabaseUnavailable
from stoker.answer_time import usual
from stoker.finding import Finding, ok, problem, warning
from stoker.settings import Settings

SLOW = 0.05
"""Seconds of an answer to nothing: every POST waits for several."""
SKEW = (5.0, 60.0)
"""Seconds between the machine's clock and the database's: worth a look, and too much."""
LONG = 60.0
"""Seconds of a transaction. The service's own are cut off at 60."""
LARGE_LOG = 200_000_000
"""Bytes of SQLite's log beside the database; 4 MB is usual."""
_LOCK_PATIENCE = 3.0
_CROWDED = 0.85


def database(settings: Settings, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Look at the database; `clock` is the machine's."""
    if (missing := missing_file(settings)) is not None:
        yield problem(
            "database",
            f"there is no database {missing}",
            "name the service's folder with --data; a new one is made by `stoker up` or `stoker db upgrade`",
        )
        return
    with closing(Database(settings.database, pool_size=1)) as db:
        try:
            yield _answers(db, settings)
            yield _schema(db)
            yield _clocks(db, clock)
            if db.dialect == "sqlite":
                yield from _sqlite(Path(str(make_url(settings.database).database)))
            else:
                yield from _postgres(db)
                yield from _replica(db, settings)
        except DatabaseUnavailable as error:
            yield problem("database", f"{shown(settings)} does not answer: {error}", _START)


_START = "start the database, or mend STOKER_DATABASE_URL; accepted jobs are safe in it and go on when it is back"


def missing_file(settings: Settings) -> Path | None:
    """Return the file of a SQLite database that is not there: to look at it would make it."""
    url = make_url(settings.database)
    if url.get_backend_name() != "sqlite" or not url.database or Path(url.database).exists():
        return None
    return Path(url.database)


def shown(settings: Settings) -> str:
    """Return the database's address without a password."""
    return make_url(settings.database).render_as_string(hide_password=True)


def _answers(db: Database, settings: Settings) -> Finding:
    def ask() -> None:
        with db.reading() as tx:
            tx.execute(sa.select(1)).one()

    took = usual(ask)
    says = f"{shown(settings)} answers in {took * 1000:.1f} ms"
    if took > SLOW:
        return warning("database", says, "look at its load and at the network: every POST waits for it several times")
    return ok("database", says)


def _schema(db: Database) -> Finding:
    try:
        newer = schema.check(db)
    except schema.SchemaOutdated as error:
        return problem(
            "schema",
            str(error),
            "run `stoker db upgrade` of the newest version that is in use; the service may run meanwhile",
        )
    return ok("schema", f"newer than this version, and compatible: {newer}" if newer else "that of this version")


def _clocks(db: Database, clock: Callable[[], float]) -> Finding:
    with db.reading() as tx:
        before = clock()
        theirs = diagnosis.clock(tx)
        skew = theirs - (before + clock()) / 2
    says = f"the database's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    do = "set both by NTP: receivers refuse webhooks that are stamped minutes off, and nothing is retired meanwhile"
    if abs(skew) > SKEW[1]:
        return problem("clock", says, do)
    return warning("clock", says, do) if abs(skew) > SKEW[0] else ok("clock", says)


def _sqlite(file: Path) -> Iterator[Finding]:
    yield _write_lock(file)
    log = file.with_name(f"{file.name}-wal")
    size = log.stat().st_size if log.exists() else 0
    if size > LARGE_LOG:
        do = "a process reads for very long and keeps it from shrinking: a copy made by hand, or an open sqlite3"
        yield warning("wal", f"SQLite's log {log} has grown to {size / 1e6:,.0f} MB", do)
    else:
        yield ok("wal", f"SQLite's log has {size / 1e6:.1f} MB")


def _write_lock(file: Path) -> Finding:
    """Take SQLite's write lock for a moment: one process that is frozen while it has it holds up all others."""
    began = time.monotonic()
    try:
        with closing(
            sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=_LOCK_PATIENCE, isolation_level=None)
        ) as it:
            it.execute("BEGIN IMMEDIATE")
            it.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        says = f"SQLite's write lock was not to be had in {_LOCK_PATIENCE:g} s: {error}"
        do = "a process is frozen, or its disk hangs, while it has the lock: find it by `stoker ps`; kill -CONT, or -9"
        return problem("writes", says, do)
    return ok("writes", f"SQLite's write lock is to be had in {(time.monotonic() - began) * 1000:.1f} ms")


def _postgres(db: Database) -> Iterator[Finding]:
    if db.pooled:
        yield _pooled(db)
    with db.reading() as tx:
        open_ones = diagnosis.transactions(tx)
        used, room = diagnosis.connections(tx)
        writable = diagnosis.writable(tx)
    if not writable:
        do = "name the primary in STOKER_DATABASE_URL, or switch default_transaction_read_only off"
        yield problem("writes", "PostgreSQL takes no writes: it is a standby, or set to read only", do)
    yield _transactions(open_ones)
    says = f"{used} connections of {room}"
    if used > room * _CROWDED:
        yield warning(
            "connections", says, "raise max_connections: a process that gets none treats the database as away"
        )
    else:
        yield ok("connections", says)


def _pooled(db: Database) -> Finding:
    with db.reading() as tx:
        known = pooling.known(tx, postgres_session.POOLED)
        untold = pooling.untold(tx, postgres_session.POOLED)
    if not untold:
        return ok("pgbouncer", "its sessions are told what ours are")
    query = pooling.connect_query({name: value for name, value in postgres_session.POOLED.items() if name in known})
    do = f"give this database in pgbouncer.ini connect_query='{query}', then RELOAD and RECONNECT it"
    return warning("pgbouncer", f"its sessions lack {', '.join(untold)}: locks may be held for ever", do)


def _replica(db: Database, settings: Settings) -> Iterator[Finding]:
    """Look how far the replica is behind, as the web servers do."""
    if not settings.database_replica:
        return
    do = "see to it; lists and counts are read from the primary meanwhile"
    with closing(Database(settings.database_replica, pool_size=1)) as replica:
        try:
            with replica.reading() as tx:
                last = sweeps.last(tx)
        except (DatabaseUnavailable, DBAPIError) as error:
            says = str(getattr(error, "orig", error)).partition("\n")[0]
            yield warning("replica", f"it does not answer: {says}", do)
            return
    with db.reading() as tx:
        behind = sweeps.lag(last, diagnosis.clock(tx))
    if behind > settings.sweep_every + sweeps.MOST_LAG:
        says = f"it has not heard of a sweep for {behind:.0f} s: it lags, or no sweeper runs"
        if math.isinf(behind):
            says = "it knows of no sweep of this database: is it a replica of it, and does a sweeper run?"
        yield warning("replica", says, do)
    else:
        yield ok("replica", f"it is {max(behind, 0.0):.1f} s behind at most")


def _transactions(rows: Sequence[AnyRow]) -> Finding:
    blocking = [row for row in rows if row.blocks and row.seconds > _LOCK_PATIENCE]
    old = [row for row in rows if row.seconds > LONG]
    if blocking:
        row = blocking[0]
        says = f"{row.blocks} wait for the transaction of process {row.pid} ({_who(row)}), open for {row.seconds:.0f} s"
        return problem("transactions", says, f"end it: SELECT pg_terminate_backend({row.pid})")
    if old:
        row = old[0]
        says = f"a transaction is open for {row.seconds:.0f} s: process {row.pid} ({_who(row)})"
        do = (
            f"the queue grows slower meanwhile; unless it is a dump or the like: SELECT pg_terminate_backend({row.pid})"
        )
        return warning("transactions", says, do)
    return ok("transactions", "none is open for long, nobody waits for a lock")


def _who(row: AnyRow) -> str:
    return " ".join(str(part) for part in (row.usename, row.program, row.state) if part)
