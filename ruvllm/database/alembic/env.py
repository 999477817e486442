"""Alembic's entry: runs on the connection and in the transaction that ruvllm/database/migrate.py opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table_schema="public")
context.run_migrations()
