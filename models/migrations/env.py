"""How alembic runs: on the connection that `models.schema` hands over."""

from alembic import context

from models.schema import metadata

connection = context.config.attributes["connection"]
# SQLite alters a table by copying it.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite")
# Nothing new where a transaction has begun already; on PostgreSQL a step can leave it, for CREATE INDEX CONCURRENTLY.
with context.begin_transaction():
    context.run_migrations()
