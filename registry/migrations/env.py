"""Run by Alembic: migrate on the connection that was handed in, inside its transaction."""

from alembic import context

from registry.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
