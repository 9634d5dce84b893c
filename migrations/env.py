"""Runs migrations on the connection it is given: `gateway.ledger.store` owns engine and turn.

There is no alembic.ini: `weighbridge db upgrade` is the command, in a checkout and installed alike.
"""

from alembic import context

from gateway.ledger.store import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="weighbridge_schema",
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
