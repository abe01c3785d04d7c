"""Webhook endpoints and the tries of their deliveries; what an API key may do, and how much; usage by day.

Revision ID: 0004_since_0003
Revises: 0003

An event may now go to several endpoints: a delivery is one of a kind by (job_id, event, endpoint_id).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_since_0003"
down_revision = "0003"
branch_labels = None
depends_on = None

_ID = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
_OPEN = "state IN ('pending', 'sending')"
_ALONE = "state = 'pending' AND group_id IS NULL AND endpoint_id <> ''"
_INDEXES = {
    "deliveries_hosts": ("(host, next_at)", _OPEN),
    "deliveries_endpoint": ("(endpoint_id, id)", "endpoint_id <> ''"),
    "deliveries_company": ("(endpoint_id, id)", _ALONE),
    "deliveries_group": ("(group_id)", "group_id IS NOT NULL"),
}
_BEFORE = {
    "deliveries_due": ("(next_at)", _OPEN),
    "deliveries_owner": ("(owner, id)", None),
}
_KEY_COLUMNS = ("name", "scopes", "expires_at", "last_used_at", "limits", "lasts")


def upgrade() -> None:
    """Apply this step."""
    if op.get_bind().dialect.name == "postgresql":
        _deliveries_in_place()
    else:
        _deliveries_copied()
    _tries()
    _endpoints()
    _keys()
    _usage()


def downgrade() -> None:
    """Take this step back: endpoints, limits and usage are lost, no job is; deliveries of endpoints go with them."""
    for table in ("usage", "webhook_endpoints", "delivery_tries"):
        op.drop_table(table)
    op.drop_index("api_keys_owner", "api_keys")
    for column in _KEY_COLUMNS:
        op.drop_column("api_keys", column)
    op.execute("DELETE FROM deliveries WHERE endpoint_id <> ''")
    for index in (*_INDEXES, *_BEFORE):
        op.drop_index(index, "deliveries")
    with op.batch_alter_table("deliveries") as change:
        change.drop_constraint("deliveries_once", type_="unique")
        change.create_unique_constraint("deliveries_once", ["job_id", "event"])
        for column in ("endpoint_id", "host", "group_id", "tries_before"):
            change.drop_column(column)
    for index, (columns, where) in _BEFORE.items():
        _index(index, columns, where)


def _index(name: str, columns: str, where: str | None, how: str = "INDEX") -> None:
    condition = f" WHERE {where}" if where else ""
    op.execute(f"CREATE {how} {name} ON deliveries {columns}{condition}")


def _deliveries_in_place() -> None:
    # Each part may be done again: CREATE INDEX CONCURRENTLY holds up nobody, but works outside of the transaction.
    op.execute(
        "ALTER TABLE deliveries"
        " ADD COLUMN IF NOT EXISTS endpoint_id VARCHAR(64) COLLATE \"C\" NOT NULL DEFAULT '',"
        " ADD COLUMN IF NOT EXISTS host VARCHAR(255) NOT NULL DEFAULT '',"
        ' ADD COLUMN IF NOT EXISTS group_id VARCHAR(64) COLLATE "C",'
        " ADD COLUMN IF NOT EXISTS tries_before SMALLINT NOT NULL DEFAULT 0"
    )
    with op.get_context().autocommit_block():
        for name in ("deliveries_once_by_endpoint", *_INDEXES):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        _index("deliveries_once_by_endpoint", "(job_id, event, endpoint_id)", None, "UNIQUE INDEX CONCURRENTLY")
        for name, (columns, where) in _INDEXES.items():
            _index(name, columns, where, "INDEX CONCURRENTLY")
    op.execute(
        "ALTER TABLE deliveries DROP CONSTRAINT deliveries_once,"
        " ADD CONSTRAINT deliveries_once UNIQUE USING INDEX deliveries_once_by_endpoint"
    )


def _deliveries_copied() -> None:
    # SQLite changes a constraint by copying the table; for so long everybody who writes waits.
    for index in _BEFORE:
        op.drop_index(index, "deliveries")
    with op.batch_alter_table("deliveries") as change:
        change.add_column(sa.Column("endpoint_id", _ID, nullable=False, server_default=""))
        change.add_column(sa.Column("host", sa.String(255), nullable=False, server_default=""))
        change.add_column(sa.Column("group_id", _ID))
        change.add_column(sa.Column("tries_before", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
        change.drop_constraint("deliveries_once", type_="unique")
        change.create_unique_constraint("deliveries_once", ["job_id", "event", "endpoint_id"])
    for index, (columns, where) in {**_BEFORE, **_INDEXES}.items():
        _index(index, columns, where)


def _tries() -> None:
    op.create_table(
        "delivery_tries",
        sa.Column("delivery_id", _ID, primary_key=True),
        sa.Column("try", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("status", sa.SmallInteger),
        sa.Column("latency_ms", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
    )


def _endpoints() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", _ID, primary_key=True),
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
    op.create_index("webhook_endpoints_owner", "webhook_endpoints", ["owner", "id"])


def _keys() -> None:
    # A key of before could do all that there was; with constant defaults no row is written.
    op.add_column("api_keys", sa.Column("name", sa.Text, nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("scopes", sa.String(64), nullable=False, server_default="submit read"))
    op.add_column("api_keys", sa.Column("expires_at", sa.Double))
    op.add_column("api_keys", sa.Column("last_used_at", sa.Double))
    op.add_column("api_keys", sa.Column("limits", sa.JSON(none_as_null=True)))
    op.add_column("api_keys", sa.Column("lasts", sa.Double))
    op.create_index("api_keys_owner", "api_keys", ["owner", "id"])


def _usage() -> None:
    counts = ("succeeded", "failed", "cancelled", "expired")
    tokens = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
    op.create_table(
        "usage",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("model", sa.String(255), primary_key=True),
        sa.Column("engine", sa.String(64), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts + tokens),
    )
    op.create_index("usage_day", "usage", ["day"])
