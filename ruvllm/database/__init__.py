"""Postgres: the embedded server, migrations, connections. Knows nothing of what memory or learning mean."""

from __future__ import annotations

from ruvllm.database.dsn import check_dsn
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.migrate import head, schema, upgrade
from ruvllm.database.pool import Database
from ruvllm.settings import Settings

__all__ = ["Database", "EmbeddedPostgres", "database_url", "open_database"]


def database_url(settings: Settings) -> str:
    """DATABASE_URL, or the embedded server's address; that server is made and started where it does not run."""
    return check_dsn(settings.database_url) if settings.database_url else EmbeddedPostgres(settings).ensure()


def open_database(settings: Settings) -> Database:
    """A migrated database. On the first migration the encoder of the settings becomes the one of this memory.

    An embedded server that dies later is started again by the next transaction.

    Raises:
        DatabaseError: Postgres cannot be started, reached or migrated.
    """
    server = None if settings.database_url else EmbeddedPostgres(settings)
    dsn = server.ensure() if server else check_dsn(settings.database_url)
    found = schema(dsn)
    if found is None:
        from ruvllm.embedding import open_embedder  # loads the encoder; only an empty database has to ask

        embedder = open_embedder(settings)
        upgrade(dsn, embedder.id, embedder.dimension)
    elif found.revision != head():
        upgrade(dsn, found.encoder_id, found.dimension)
    return Database(dsn, settings.tenant, revive=server.revive if server else None)
