"""How alembic runs: on the connection that `models.schema` hands over."""

from alembic import context

from models.schema import metadata

connection = context.config.attributes["connection"]
# SQLite alters a table by copying it.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite")
context.run_migrations()
