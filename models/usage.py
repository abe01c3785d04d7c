"""Usage: what became of each owner's jobs, and the tokens that they took, by day and model."""

from __future__ import annotations

import sqlalchemy as sa

from models.db import metadata

STATES = ("succeeded", "failed", "cancelled", "expired")
TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")

table = sa.Table(
    "usage",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.String(255), primary_key=True),
    sa.Column("engine", sa.String(64), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in STATES + TOKENS),
)
"""`day`: whole days since 1970, UTC. `engine`: who counted, so that engines do not wait for each other's row; added up
by whoever reads."""

sa.Index("usage_day", table.c.day)
