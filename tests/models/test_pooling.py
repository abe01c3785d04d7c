"""PgBouncer's place in a database's URL, and what its sessions are told."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models import pooling, postgres_session
from models.db import Database


@pytest.mark.parametrize(
    ("said", "pooled"), [("", False), ("?pgbouncer=true", True), ("?pgbouncer=false", False), ("?pgbouncer=1", True)]
)
def test_the_option_is_ours_alone(said: str, pooled: bool) -> None:
    """The driver never sees it; what else stands in the URL stays."""
    more = f"{said}&sslmode=require" if said else "?sslmode=require"
    url, found = pooling.direct(f"postgresql+psycopg://me:pw@h:6432/d{more}")
    assert found is pooled
    assert url.render_as_string(hide_password=False) == "postgresql+psycopg://me:pw@h:6432/d?sslmode=require"


def test_what_a_session_lacks_is_found(postgres_database: Database) -> None:
    """Whatever unit the server tells it in; settings that an older server does not know are not missed."""
    with postgres_database.engine.connect() as tx:
        assert pooling.untold(tx, {"lock_timeout": "5s", "enable_seqscan": "off", "of_the_future": "on"}) == []
        assert pooling.untold(tx, postgres_session.POOLED) == []
        tx.execute(sa.text("SET LOCAL lock_timeout = '500ms'"))
        tx.execute(sa.text("SET LOCAL statement_timeout = '1min'"))
        assert pooling.untold(tx, postgres_session.POOLED) == ["lock_timeout"]


def test_the_query_tells_it_all(postgres_database: Database) -> None:
    """As PgBouncer sends it, with its doubled quotes resolved: at once, to a session that was told nothing."""
    with postgres_database.engine.connect() as tx:
        for name in postgres_session.POOLED:
            tx.exec_driver_sql(f"RESET {name}")
            tx.exec_driver_sql(f"SET {name} = DEFAULT")
        tx.exec_driver_sql(pooling.connect_query(postgres_session.POOLED).replace("''", "'"))
        assert pooling.untold(tx, postgres_session.POOLED) == []
        tx.invalidate()
