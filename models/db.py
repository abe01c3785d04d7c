"""The database: how it is opened, its clock, and the only two ways to talk to it.

`Database.transaction()` for whatever writes, `Database.reading()` for whatever only reads. Functions in `models/` take
the open connection and never commit; views, tasks and commands open the transaction.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self, TypeVar

import sqlalchemy as sa
import uuid_utils
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from models import pooling, postgres_session, sqlite_file
from models.errors import DatabaseUnavailable
from models.gate import Gate
from models.silence import bound

T = TypeVar("T")

AnyRow = sa.Row[*tuple[Any, ...]]
"""A row whose columns a query names."""

metadata = sa.MetaData()

Id = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
"""Ids are ASCII and ordered by time: bytewise comparison is right and the fastest."""

_PG_DEADLOCK = frozenset({"40P01", "40001", "55P03"})
_PG_AWAY = frozenset({"25006", "25P03", "25P04"})
"""Errors that psycopg takes for the program's: a server that only reads (a standby), a transaction cut off."""


class now(FunctionElement[float]):  # noqa: N801  # reads as the SQL function that it is
    """The database's own clock, in seconds since 1970: the only clock that leases and due times are compared with.

    It is read once a statement: what is not the same for every row cannot be searched for in an index.
    """

    type = sa.Float()
    inherit_cache = True


@compiles(now, "postgresql")
def _now_postgresql(_element: now, _compiler: Any, **_: Any) -> str:
    # clock_timestamp() is volatile: `run_at <= clock_timestamp()` reads every row that is delayed.
    return "extract(epoch FROM statement_timestamp())::double precision"


@compiles(now, "sqlite")
def _now_sqlite(_element: now, _compiler: Any, **_: Any) -> str:
    # unixepoch('subsec') would read better but needs SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"


class micros(FunctionElement[int]):  # noqa: N801  # reads as the SQL function that it is
    """The database's clock in whole microseconds: the queue position of a job that is queued now."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(micros, "postgresql")
def _micros_postgresql(_element: micros, _compiler: Any, **_: Any) -> str:
    return "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


@compiles(micros, "sqlite")
def _micros_sqlite(_element: micros, _compiler: Any, **_: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"


class _TextArray(sa.types.TypeDecorator[list[str]]):
    """A list of texts as one parameter, so that the statement is the same for any number of them."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Return the array type where there is one."""
        return dialect.type_descriptor(postgresql.ARRAY(sa.Text()) if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return the list itself, or as JSON."""
        return value if dialect.name == "postgresql" else json.dumps(value)


class _Among(FunctionElement[bool]):
    type = sa.Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Self:  # noqa: ARG002  # SQLAlchemy hands it over
        """Stay as it is: SQLite has no booleans, and what SQLAlchemy then writes, `... = 1`, uses no index."""
        return self


@compiles(_Among, "postgresql")
def _among_postgresql(element: _Among, compiler: Any, **options: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **options)} = ANY ({compiler.process(values, **options)})"


@compiles(_Among, "sqlite")
def _among_sqlite(element: _Among, compiler: Any, **options: Any) -> str:
    column, values = element.clauses
    listed = compiler.process(values, **options)
    return f"{compiler.process(column, **options)} IN (SELECT value FROM json_each({listed}))"  # noqa: S608  # a parameter


def among(column: sa.ColumnElement[Any], values: Iterable[str]) -> sa.ColumnElement[bool]:
    """Return `column IN values` with one parameter, however many values there are."""
    return _Among(column, sa.bindparam(None, list(values), _TextArray(), unique=True))


def literal(value: str) -> sa.BindParameter[str]:
    """Return a value that is written into the SQL text.

    A partial index is used only where its condition can be proved, and a generic plan cannot prove `state = $1`.
    """
    return sa.literal(value, literal_execute=True)


def new_id(prefix: str, sign: str = "_") -> str:
    """Return a new id, ordered by time: `job_0198...`; OpenAI's files have another sign, `file-0198...`."""
    return f"{prefix}{sign}{uuid_utils.uuid7().hex}"


def made_at(ident: str) -> float:
    """Return when `new_id` made an id, in seconds since 1970 by the clock of its process."""
    return int(ident[-32:][:12], 16) / 1000


def is_id(prefix: str, text: str, sign: str = "_") -> bool:
    """Tell whether a text has the shape of an id, so that hostile ones never reach the database."""
    head, _, tail = text.partition(sign)
    if head != prefix or len(tail) != 32:  # noqa: PLR2004  # hex digits of a UUID
        return False
    try:
        return uuid.UUID(tail).hex == tail
    except ValueError:
        return False


def one_of(column: sa.ColumnElement[str], values: Iterable[str]) -> sa.ColumnElement[bool]:
    """Return `column IN values`, or `=` for one value, the values written into the SQL text as by `literal`.

    To SQLite `state IN ('ready')` is no proof of an index's condition `state = 'ready'`.
    """
    texts = sorted(values)
    return column == literal(texts[0]) if len(texts) == 1 else column.in_([literal(text) for text in texts])


def in_order(tx: sa.Connection, target: sa.Table, *where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Return the condition of an UPDATE that locks its rows in the order of their ids.

    Two transactions over the same rows then never deadlock. SQLite has one writer, and no row locks.
    """
    if tx.dialect.name == "sqlite":
        return sa.and_(*where)
    return target.c.id.in_(sa.select(target.c.id).where(*where).order_by(target.c.id).with_for_update())


def upsert(tx: sa.Connection, target: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that can say `on_conflict_do_nothing` or `on_conflict_do_update`."""
    return postgresql.insert(target) if tx.dialect.name == "postgresql" else sqlite.insert(target)


class Database:
    """An open database. Safe to share between threads; not across a fork."""

    def __init__(self, url: str, *, pool_size: int = 10, gate: Gate | None = None, silence: float = math.inf) -> None:
        """Open lazily: nothing is connected before the first transaction.

        `gate`: who may use it, and how many wait. `silence`: seconds after which an answer is no longer waited for.
        """
        self._place = gate.place if gate is not None else nullcontext
        self.engine = _engine(url, pool_size, crowded=gate is not None)
        if self.engine.dialect.name == "postgresql":
            bound(self.engine, silence)
        self.dialect = self.engine.dialect.name
        self.pooled = pooling.direct(url)[1]
        options: dict[str, Any] = {"stoker_read": True}
        if self.dialect == "postgresql":
            # Two round trips less; read committed sees as much. SQLite's transaction is a snapshot, and free.
            options["isolation_level"] = "AUTOCOMMIT"
        self._reader = self.engine.execution_options(**options)

    @contextmanager
    def transaction(self, *, patient: bool = False) -> Iterator[sa.Connection]:
        """Run what writes: committed at the end, rolled back by any exception. `patient`: see `Gate.place`."""
        with _outages(), self._place(patient), self.engine.begin() as tx:
            yield tx

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Run what only reads: on SQLite it takes no write lock."""
        with _outages(), self._place(), self._reader.begin() as tx:
            yield tx

    def retrying(self, work: Callable[[sa.Connection], T], *, tries: int = 5) -> T:
        """Run `work` in a transaction, again when the database chose it as a deadlock's victim."""
        with _outages(), self._place():
            for _ in range(tries - 1):
                try:
                    with self.engine.begin() as tx:
                        return work(tx)
                except DBAPIError as error:
                    if getattr(error.orig, "sqlstate", None) not in _PG_DEADLOCK:
                        raise
            with self.engine.begin() as tx:
                return work(tx)

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


@contextmanager
def _outages() -> Iterator[None]:
    """Give every way in which a database can be away one name."""
    try:
        yield
    except (OperationalError, InterfaceError, sa.exc.TimeoutError) as error:
        raise DatabaseUnavailable(str(getattr(error, "orig", None) or error).partition("\n")[0]) from error
    except DBAPIError as error:
        if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _PG_AWAY:
            raise DatabaseUnavailable(str(error.orig).partition("\n")[0]) from error
        raise


def _engine(url: str, pool_size: int, *, crowded: bool) -> sa.Engine:
    if url.startswith("sqlite"):
        wait = {"timeout": sqlite_file.PATIENCE}
        engine = sa.create_engine(url, pool_size=pool_size, max_overflow=10, connect_args=wait)
        sa.event.listen(engine, "connect", sqlite_file.prepare)
        sa.event.listen(engine, "begin", sqlite_file.begin)
        return engine
    return postgres_session.engine(url, pool_size, crowded=crowded)
