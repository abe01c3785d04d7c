"""What engines measured, the attempts of a job that came to nothing, and what an engine tells of itself.

Revision ID: 0005_since_0003
Revises: 0004_since_0003

New tables and a column that may be NULL: programs of before do not miss them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_since_0003"
down_revision = "0004_since_0003"
branch_labels = None
depends_on = None

_ID = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "samples",
        sa.Column("width", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("engine", sa.String(64), nullable=False),
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("lane", sa.String(16), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("width", "at", "engine", "incarnation", "model", "lane"),
    )
    op.create_table(
        "past_attempts",
        sa.Column("job_id", _ID, nullable=False),
        sa.Column("attempt", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("batch_id", _ID, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "attempt"),
    )
    op.add_column("engines", sa.Column("detail", sa.Text))


def downgrade() -> None:
    """Take this step back: what was measured is lost, no job is."""
    op.drop_column("engines", "detail")
    op.drop_table("past_attempts")
    op.drop_table("samples")
