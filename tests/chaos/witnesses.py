"""A witness inside the database: triggers write down each result and each end of a job, which nothing can take back.

They belong to the test alone. Being rows of the same transaction they vanish with one that is rolled back, and so say
exactly what was committed.
"""

from __future__ import annotations

import sqlalchemy as sa

from models.db import Database

_TABLE = "CREATE TABLE witnessed (what text NOT NULL, job_id text NOT NULL, state text, batch_id text)"
_FINAL = "('succeeded', 'failed', 'cancelled', 'expired')"
_NEW_RESULT = "INSERT INTO witnessed VALUES ('result', NEW.job_id, NULL, NEW.batch_id);"
_NEW_END = "INSERT INTO witnessed VALUES ('end', NEW.id, NEW.state, NEW.batch_id);"
_AN_END = f"(NEW.state IN {_FINAL} OR OLD.state IN {_FINAL})"
_CHANGED = "INSERT OR UPDATE OF body, status, batch_id ON results FOR EACH ROW"
_ENDED = "UPDATE OF state ON jobs FOR EACH ROW"
_FUNCTION = "CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NULL; END $$"

_SQLITE = (
    _TABLE,
    f"CREATE TRIGGER witness_result AFTER INSERT ON results BEGIN {_NEW_RESULT} END",
    f"CREATE TRIGGER witness_changed AFTER UPDATE OF body, status, batch_id ON results BEGIN {_NEW_RESULT} END",
    f"CREATE TRIGGER witness_end AFTER UPDATE OF state ON jobs WHEN {_AN_END} BEGIN {_NEW_END} END",
)
_POSTGRES = (
    _TABLE,
    _FUNCTION.format("witness_result", _NEW_RESULT),
    f"CREATE TRIGGER witness_result AFTER {_CHANGED} EXECUTE FUNCTION witness_result()",
    _FUNCTION.format("witness_end", _NEW_END),
    f"CREATE TRIGGER witness_end AFTER {_ENDED} WHEN {_AN_END} EXECUTE FUNCTION witness_end()",
)


def install(database: Database) -> None:
    """Put the witnesses into a migrated database."""
    with database.transaction() as tx:
        for statement in _SQLITE if database.dialect == "sqlite" else _POSTGRES:
            tx.execute(sa.text(statement))
