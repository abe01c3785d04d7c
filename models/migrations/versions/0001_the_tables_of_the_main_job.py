"""The tables of the main job.

Revision ID: 0001
Revises: nothing

A step is frozen: it imports nothing of `models`, so that it makes the same tables for ever.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")

_TABLES = (
    "api_keys",
    "batches",
    "bodies",
    "collectors",
    "deliveries",
    "engine_models",
    "engines",
    "idempotency_keys",
    "jobs",
    "models",
    "results",
    "sweeps",
    "turns",
)


def upgrade() -> None:
    """Apply this step."""
    _jobs()
    _results()
    _batches()
    _queue()
    _engines()
    _deliveries()
    _owners()


def downgrade() -> None:
    """Take this step back: everything is lost."""
    for table in _TABLES:
        op.drop_table(table)


def _partial(name: str, table: str, columns: list[str], where: str, *, include: list[str] | None = None) -> None:
    condition = sa.text(where)
    op.create_index(
        name, table, columns, sqlite_where=condition, postgresql_where=condition, postgresql_include=include
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("lane", sa.String(16), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("pos", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("notify", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.SmallInteger, nullable=False),
        sa.Column("deferrals", sa.SmallInteger, nullable=False),
        sa.Column("lone_deaths", sa.SmallInteger, nullable=False),
        sa.Column("batch_id", _ID),
        sa.Column("cohort_id", _ID),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("run_at", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
    )
    queued = "state = 'queued' AND cohort_id IS NULL"
    line = ["model", "lane", "owner", "pos"]
    if op.get_context().dialect.name == "postgresql":
        # A cut walks over the dead entries at the head of the queue: 10,000 of them cost it about 1 ms. By default a
        # vacuum waits for a fifth of the table. (No fillfactor: the partial indexes on `state` rule out HOT updates.)
        op.execute("ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000)")
        _partial("jobs_queue", "jobs", line, queued, include=["tokens"])
    else:
        # SQLite has no INCLUDE: as the last column it does the same.
        _partial("jobs_queue", "jobs", [*line, "tokens"], queued)
    _partial("jobs_cohorts", "jobs", ["model", "cohort_id"], "state = 'queued' AND cohort_id IS NOT NULL")
    _partial("jobs_batch", "jobs", ["batch_id"], "state IN ('batched', 'running')")
    _partial("jobs_delayed", "jobs", ["run_at"], "state = 'delayed'")
    still_open = "state IN ('batched', 'delayed', 'queued', 'running')"
    _partial("jobs_expiry", "jobs", ["expires_at"], f"expires_at IS NOT NULL AND {still_open}")
    op.create_index("jobs_owner", "jobs", ["owner", "id"])


def _results() -> None:
    op.create_table(
        "bodies",
        sa.Column("job_id", _ID, primary_key=True),
        sa.Column("metadata", sa.JSON),
        sa.Column("webhook_url", sa.Text),
        sa.Column("webhook_secret", sa.Text),
        sa.Column("webhook_include_result", sa.Boolean, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "results",
        sa.Column("job_id", _ID, primary_key=True),
        sa.Column("batch_id", _ID),
        sa.Column("engine_id", sa.String(64)),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("body", sa.Text),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("lane", sa.String(16), nullable=False),
        sa.Column("rank", sa.SmallInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("cohort_id", _ID),
        sa.Column("engine_id", sa.String(64)),
        sa.Column("incarnation", _ID),
        sa.Column("lease_until", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("claimed_at", sa.Double),
        sa.Column("finished_at", sa.Double),
    )
    _partial("batches_ready", "batches", ["model", "rank", "created_at"], "state = 'ready'")
    _partial("batches_running", "batches", ["lease_until"], "state = 'running'")
    _partial("batches_cohorts", "batches", ["model"], "cohort_id IS NOT NULL AND state IN ('ready', 'running')")
    op.create_index("batches_recent", "batches", ["created_at"])


def _queue() -> None:
    op.create_table(
        "turns",
        sa.Column("model", sa.String(255), primary_key=True),
        sa.Column("lane", sa.String(16), primary_key=True),
        sa.Column("last_owner", sa.String(64), nullable=False),
        sa.Column("deficit", sa.Double, nullable=False),
        sa.Column("cut_at", sa.Double, nullable=False),
    )
    op.create_table(
        "collectors",
        sa.Column("model", sa.String(255), primary_key=True),
        sa.Column("holder", _ID),
        sa.Column("due_at", sa.Double, nullable=False),
    )
    op.create_table(
        "sweeps",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("last_at", sa.Double, nullable=False),
        sa.Column("grace_until", sa.Double, nullable=False),
    )


def _engines() -> None:
    op.create_table(
        "engines",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("reserve", sa.Integer, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_group", sa.Integer, nullable=False),
        sa.Column("process_start", sa.String(64), nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
    )
    op.create_table(
        "engine_models",
        sa.Column("engine_id", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(255), primary_key=True),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("max_model_len", sa.Integer),
        sa.Column("tokenizer", sa.Text),
        sa.Column("registered_at", sa.Double, nullable=False),
        sa.Column("removed_at", sa.Double),
    )


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("job_id", _ID, nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text),
        sa.Column("include_result", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("try", sa.SmallInteger, nullable=False),
        sa.Column("next_at", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("delivered_at", sa.Double),
        sa.Column("status", sa.SmallInteger),
        sa.Column("latency_ms", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("answer", sa.Text),
        sa.UniqueConstraint("job_id", "event", name="deliveries_once"),
    )
    _partial("deliveries_due", "deliveries", ["next_at"], "state IN ('pending', 'sending')")
    op.create_index("deliveries_owner", "deliveries", ["owner", "id"])


def _owners() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("idempotency_keys_age", "idempotency_keys", ["created_at"])
