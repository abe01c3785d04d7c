"""Webhook endpoints: where an owner wants to be told of events, and which of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models.db import AnyRow, Id, among, metadata, new_id, now
from models.errors import NotFound, TooManyEndpoints
from models.event_types import OF_EACH_JOB

table = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event_types", sa.JSON(none_as_null=True), nullable=False),
    sa.Column("include_result", sa.Boolean, nullable=False),
    sa.Column("coalesce", sa.Double),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("secret_hint", sa.String(32), nullable=False),
    sa.Column("old_secret", sa.Text),
    sa.Column("old_secret_until", sa.Double),
    sa.Column("failing_since", sa.Double),
    sa.Column("last_failed_at", sa.Double),
    sa.Column("disabled_at", sa.Double),
    sa.Column("disabled_why", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
)
"""`coalesce`: seconds that an event waits for others, to be sent with them in one request; null: each on its own.
`secret`, `old_secret`: sealed (`models/sealing.py`). `failing_since`: when the first of the tries failed of which none
has succeeded since. `last_failed_at`: when a try failed last, give or take a minute."""

sa.Index("webhook_endpoints_owner", table.c.owner, table.c.id)

MOST = 100
"""Endpoints of one owner."""
MOST_OF_JOBS = 10
"""Of these, endpoints that ask for events of jobs: a delivery for each of them is stored with each end of a job."""
OLD_SECRET_LASTS = 86_400.0
BY_OWNER = "disabled by its owner"


@dataclass(frozen=True, slots=True)
class Subscriber:
    """An endpoint that is to be told, as far as the outbox needs it."""

    id: str
    owner: str
    url: str
    event_types: Sequence[str]
    include_result: bool
    coalesce: float | None


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """An endpoint that is about to be stored. `secret` is sealed, `secret_hint` what may be shown of it."""

    owner: str
    name: str
    url: str
    event_types: Sequence[str]
    secret: str = field(repr=False)
    secret_hint: str
    include_result: bool = False
    coalesce: float | None = None
    enabled: bool = True


def create(tx: sa.Connection, new: NewEndpoint) -> AnyRow:
    """Store an endpoint; return its row. Raises TooManyEndpoints."""
    _alone(tx, new.owner)
    mine = sa.select(sa.func.count()).select_from(table).where(table.c.owner == new.owner)
    if tx.execute(mine).scalar_one() >= MOST:
        raise TooManyEndpoints(MOST)
    _check_of_jobs(tx, new.owner, new.event_types)
    values = {
        "id": new_id("whe"),
        **{name: getattr(new, name) for name in ("owner", "name", "url", "include_result", "coalesce")},
        "event_types": list(new.event_types),
        "secret": new.secret,
        "secret_hint": new.secret_hint,
        "disabled_at": None if new.enabled else now(),
        "disabled_why": None if new.enabled else BY_OWNER,
        "created_at": now(),
        "updated_at": now(),
    }
    return tx.execute(sa.insert(table).values(values).returning(table)).one()


def _alone(tx: sa.Connection, owner: str) -> None:
    """Let others of this owner wait: two at once would both count what there is without the other's."""
    if tx.dialect.name == "postgresql":  # SQLite's transaction that writes is alone
        tx.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"webhook_endpoints {owner}", 0))))


def _check_of_jobs(tx: sa.Connection, owner: str, event_types: Iterable[str], but: str = "") -> None:
    """Refuse one endpoint more (`but`: the one that is changed) that asks for events of jobs; disabled ones count."""
    if OF_EACH_JOB.isdisjoint(event_types):
        return
    others = tx.execute(sa.select(table.c.event_types).where(table.c.owner == owner, table.c.id != but)).scalars()
    if sum(not OF_EACH_JOB.isdisjoint(asked) for asked in others) >= MOST_OF_JOBS:
        raise TooManyEndpoints(MOST_OF_JOBS, "job.* or response.* events")


def get(tx: sa.Connection, owner: str, endpoint_id: str, *, locked: bool = False) -> AnyRow:
    """Return an endpoint of this owner, `locked` against changes. Raises NotFound."""
    found = sa.select(table).where(table.c.id == endpoint_id, table.c.owner == owner)
    row = tx.execute(found.with_for_update() if locked else found).one_or_none()
    if row is None:
        raise NotFound("webhook endpoint", endpoint_id)
    return row


def page(tx: sa.Connection, owner: str, *, after: str | None = None, limit: int = 20) -> tuple[Sequence[AnyRow], bool]:
    """Return up to `limit` endpoints from behind the id `after`, newest first, and whether more follow."""
    chosen = sa.select(table).where(table.c.owner == owner)
    if after is not None:
        chosen = chosen.where(table.c.id < after)
    rows = tx.execute(chosen.order_by(table.c.id.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def update(tx: sa.Connection, owner: str, endpoint_id: str, *, enabled: bool | None = None, **values: Any) -> AnyRow:
    """Change an endpoint; return its row. Enabled, or with another URL, it is judged anew.

    `values`: name, url, event_types, include_result, coalesce. What changes nothing is no change: `updated_at` stays.
    Raises NotFound, TooManyEndpoints.
    """
    if "event_types" in values:
        _alone(tx, owner)
    row = get(tx, owner, endpoint_id, locked=True)
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    if enabled is not None and enabled != (row.disabled_at is None):
        changed |= {"disabled_at": None if enabled else now(), "disabled_why": None if enabled else BY_OWNER}
    if not changed:
        return row
    if "event_types" in changed:
        _check_of_jobs(tx, owner, changed["event_types"], endpoint_id)
    if enabled or "url" in changed:
        changed["failing_since"] = None
    statement = sa.update(table).where(table.c.id == endpoint_id).values(**changed, updated_at=now())
    return tx.execute(statement.returning(table)).one()


def rotate(tx: sa.Connection, owner: str, endpoint_id: str, secret: str, hint: str, *, keep_old: bool) -> AnyRow:
    """Give an endpoint another secret (sealed); `keep_old`: the present one signs too, for a day. Raises NotFound."""
    row = get(tx, owner, endpoint_id, locked=True)
    statement = sa.update(table).where(table.c.id == endpoint_id)
    changed = statement.values(
        secret=secret,
        secret_hint=hint,
        old_secret=row.secret if keep_old else None,
        old_secret_until=now() + OLD_SECRET_LASTS if keep_old else None,
        updated_at=now(),
    )
    return tx.execute(changed.returning(table)).one()


def delete(tx: sa.Connection, owner: str, endpoint_id: str) -> None:
    """Delete an endpoint; what is still on its way to it ends at its next try. Raises NotFound."""
    mine = (table.c.id == endpoint_id, table.c.owner == owner)
    if tx.execute(sa.delete(table).where(*mine)).rowcount == 0:
        raise NotFound("webhook endpoint", endpoint_id)


def subscribers(tx: sa.Connection, owners: Iterable[str]) -> list[Subscriber]:
    """Return the endpoints of these owners that are enabled, in the order of their ids."""
    columns = (table.c[name] for name in ("id", "owner", "url", "event_types", "include_result", "coalesce"))
    enabled = sa.select(*columns).where(among(table.c.owner, owners), table.c.disabled_at.is_(None))
    # Sorted here: asked for in an order, a database may read those of all owners in it.
    return sorted((Subscriber(*row) for row in tx.execute(enabled)), key=lambda one: one.id)
