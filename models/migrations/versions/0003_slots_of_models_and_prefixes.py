"""Slots that a model has of its own, which queued jobs begin alike, and the trace that a job belongs to.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("engine_models", sa.Column("slots", sa.Integer))
    # With a constant default neither database writes the rows that there are. Not in the index of the queue: for the
    # id a cut reads the row anyway.
    op.add_column("jobs", sa.Column("prefix", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("bodies", sa.Column("trace", sa.Text))


def downgrade() -> None:
    """Take this step back: what it knew is lost, no job is."""
    op.drop_column("bodies", "trace")
    op.drop_column("jobs", "prefix")
    op.drop_column("engine_models", "slots")
