"""Bulks, files, and what jobs and results know of their bulk.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    """Apply this step."""
    _files()
    _bulks()
    _jobs()
    _results()


def downgrade() -> None:
    """Take this step back: bulks and files are lost, the jobs of bulks stay."""
    op.drop_index("results_bulk", "results")
    for name in ("bulk_id", "seq", "ok", "line_no", "custom_id"):
        op.drop_column("results", name)
    op.drop_index("jobs_bulk", "jobs")
    for name in ("bulk_id", "line_no", "custom_id"):
        op.drop_column("jobs", name)
    op.drop_column("bodies", "columns")
    op.drop_table("bulks")
    op.drop_table("files")


def _partial(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
    )
    op.create_index("files_owner", "files", ["owner", "id"])
    _partial("files_expiry", "files", ["expires_at"], "expires_at IS NOT NULL")
    _partial("files_leftover", "files", ["created_at"], "state IN ('deleted', 'uploading')")


def _bulks() -> None:
    counts = ("total", "done", "succeeded", "failed", "cancelled", "expired", "invalid")
    tokens = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
    moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    op.create_table(
        "bulks",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("lane", sa.String(16), nullable=False),
        sa.Column("lane_applied", sa.String(16), nullable=False),
        sa.Column("paused_at", sa.Double),
        sa.Column("model", sa.String(255)),
        sa.Column("endpoint", sa.String(64)),
        sa.Column("file_id", _ID),
        sa.Column("input_url", sa.Text),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("gzip", sa.Boolean, nullable=False),
        sa.Column("defaults", sa.JSON),
        sa.Column("metadata", sa.JSON),
        sa.Column("dry_run", sa.Boolean, nullable=False),
        sa.Column("stop_after_failed", sa.Double),
        sa.Column("retry_of", _ID),
        sa.Column("window", sa.String(16)),
        sa.Column("webhook_url", sa.Text),
        sa.Column("webhook_secret", sa.Text),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("line", sa.BigInteger, nullable=False),
        sa.Column("ingest_done", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts + tokens),
        sa.Column("errors", sa.JSON),
        sa.Column("report", sa.JSON),
        sa.Column("output_file_id", _ID),
        sa.Column("error_file_id", _ID),
        sa.Column("output_expires_after", sa.Integer),
        sa.Column("created_at", sa.Double, nullable=False),
        *(sa.Column(f"{name}_at", sa.Double) for name in moments),
        sa.Column("expires_at", sa.Double),
        sa.Column("deleted_at", sa.Double),
        sa.Column("holder", _ID),
        sa.Column("lease_until", sa.Double),
    )
    op.create_index("bulks_owner", "bulks", ["owner", "id"])
    unfinished = "(state IN ('cancelling', 'finalizing', 'running', 'validating') OR deleted_at IS NOT NULL)"
    _partial("bulks_unfinished", "bulks", ["id"], unfinished)


def _jobs() -> None:
    op.add_column("jobs", sa.Column("bulk_id", _ID))
    op.add_column("jobs", sa.Column("line_no", sa.BigInteger))
    op.add_column("jobs", sa.Column("custom_id", sa.Text))
    # No line of an upload becomes a job twice, whatever reads it.
    _partial("jobs_bulk", "jobs", ["bulk_id", "line_no"], "bulk_id IS NOT NULL", unique=True)
    op.add_column("bodies", sa.Column("columns", sa.Text))


def _results() -> None:
    op.add_column("results", sa.Column("bulk_id", _ID))
    op.add_column("results", sa.Column("seq", sa.BigInteger))
    op.add_column("results", sa.Column("ok", sa.Boolean))
    op.add_column("results", sa.Column("line_no", sa.BigInteger))
    op.add_column("results", sa.Column("custom_id", sa.Text))
    _partial("results_bulk", "results", ["bulk_id", "ok", "seq"], "bulk_id IS NOT NULL", unique=True)
