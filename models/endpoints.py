"""Webhook endpoints: where an owner wants to be told of events, and which of them."""

from __future__ import annotations

import sqlalchemy as sa

from models.db import Id, metadata

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
    sa.Column("disabled_at", sa.Double),
    sa.Column("disabled_why", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
)
"""`coalesce`: seconds that an event waits for others, to be sent with them in one request; null: each on its own.
`secret`, `old_secret`: sealed (`models/sealing.py`). `failing_since`: when the first of the tries failed of which none
has succeeded since."""

sa.Index("webhook_endpoints_owner", table.c.owner, table.c.id)
