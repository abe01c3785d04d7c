"""An index of the jobs that did not succeed: they are found at once, however many jobs came after them.

Revision ID: 0006_since_0003
Revises: 0005_since_0003

Programs of before keep it without knowing of it.
"""

from __future__ import annotations

from alembic import op

revision = "0006_since_0003"
down_revision = "0005_since_0003"
branch_labels = None
depends_on = None

_NAME = "jobs_unsuccessful"
_INDEX = f"{_NAME} ON jobs (owner, state, id) WHERE state IN ('cancelled', 'expired', 'failed')"


def upgrade() -> None:
    """Apply this step."""
    if op.get_bind().dialect.name != "postgresql":
        op.execute(f"CREATE INDEX {_INDEX}")
        return
    # It may be done again: what is made beside the work that goes on can be cut off in the middle.
    with op.get_context().autocommit_block():
        # It holds up nobody while it waits for transactions that are open, be it a dump of hours: no time is too long.
        op.execute("SET lock_timeout = 0")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}")
        op.execute(f"CREATE INDEX CONCURRENTLY {_INDEX}")


def downgrade() -> None:
    """Take this step back: nothing is lost."""
    op.drop_index(_NAME, "jobs")
