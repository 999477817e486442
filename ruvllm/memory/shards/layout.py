"""Makes servers into shards: schema, reader's login, foreign tables at the coordinator. Knows nothing of searching.

Tenants stay apart on the shard itself. The coordinator reads through a login that may do what ruvllm_app may, and the
connection of each foreign server carries its tenant (`options '-c app.tenant=…'`), so row-level security on the shard
lets one foreign table see one tenant and no other, whatever the query says. Foreign tables cannot have policies of
their own; hence a schema of them for each spread tenant, granted to ruvllm_app and to no analyst.
"""

from __future__ import annotations

import hashlib
import re
import secrets

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Composed, Identifier, Literal

from ruvllm.database.dsn import shown
from ruvllm.database.migrate import schema, upgrade
from ruvllm.errors import DatabaseError
from ruvllm.memory.shards.records import ID_BITS, Shard, ShardSet

_VIEW = """
    CREATE OR REPLACE VIEW memory.shard_nodes WITH (security_invoker = true) AS
    SELECT n.id, n.uuid, n.kind, n.domain, n.trust, n.embedding, n.confidence, n.version, n.created_at,
           t.text, t.source, t.writer, t.tags, t.metadata
    FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id WHERE n.archived_at IS NULL
"""
_COLUMNS = (
    "id bigint, uuid uuid, kind text, domain text, trust text, embedding halfvec({}), confidence real, version int, "
    "created_at timestamptz, text text, source text, writer text, tags text[], metadata jsonb"
)
MIN_COORDINATOR = 18  # pg_restore_relation_stats; ANALYZE of a foreign table over a view would fetch every row
_ROWS = 1e12  # what the planner is told that a shard holds: far more than any k, so that it always sends the LIMIT
_KEPT = ("host", "port", "dbname", "sslmode", "sslrootcert", "target_session_attrs")
_NUMBERED = ("nodes", "edges")


def create(shards: ShardSet, encoder_id: str, dimension: int) -> None:
    """Migrate coordinator and shards; number each shard's ids. A second call does no harm.

    Raises:
        DatabaseError: a server cannot be reached or refuses, or a shard that is not empty has another's ids.
    """
    for dsn in (shards.coordinator, *(shard.dsn for shard in shards.shards)):
        upgrade(dsn, encoder_id, dimension)
    for place, shard in enumerate(shards.shards):
        with owner(shard.dsn) as connection:
            connection.execute(_VIEW)
            connection.execute("GRANT SELECT ON memory.shard_nodes TO ruvllm_app")
            for table in _NUMBERED:
                _number_ids(connection, shard, table, place)
    with owner(shards.coordinator) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")


def open_tenant(shards: ShardSet, tenant: str) -> None:
    """Make, or make anew, the foreign tables through which `tenant` is searched over all shards."""
    dimension = _check_coordinator(shards)
    logins = {shard.name: _make_login(shard, tenant) for shard in shards.shards}
    folder = Identifier(schema_of(tenant))
    with owner(shards.coordinator) as connection:
        connection.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(folder))
        for shard in shards.shards:
            for statement in _foreign(shards, shard, tenant, logins[shard.name], dimension):
                connection.execute(statement)
        connection.execute(SQL("GRANT USAGE ON SCHEMA {} TO ruvllm_app").format(folder))
        connection.execute(SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO ruvllm_app").format(folder))


def owner(dsn: str) -> Connection:
    """A connection as the owner, one transaction a `with` block."""
    try:
        return psycopg.connect(dsn, connect_timeout=5)
    except psycopg.OperationalError as error:
        raise DatabaseError(f"Postgres at {shown(dsn)}: {str(error).strip()}") from error


def schema_of(tenant: str) -> str:
    return f"shards_{_digest(tenant)}"


def _check_coordinator(shards: ShardSet) -> int:
    """The dimension of its encoder."""
    where = f"coordinator at {shown(shards.coordinator)}"
    found = schema(shards.coordinator)
    if found is None:
        raise DatabaseError(f"{where}: has no schema; create the shard set first")
    with owner(shards.coordinator) as connection:
        if (got := connection.info.server_version // 10000) < MIN_COORDINATOR:
            raise DatabaseError(f"{where}: is PostgreSQL {got}, want {MIN_COORDINATOR} or newer (shards may be older)")
    return found.dimension


def _digest(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:16]


def _number_ids(connection: Connection, shard: Shard, table: str, place: int) -> None:
    """Ids of this shard begin with its place in the set."""
    first, last = (place << ID_BITS) + 1, (place + 1) << ID_BITS
    name = Identifier("memory", table)
    row = connection.execute(SQL("SELECT min(id), max(id) FROM {}").format(name)).fetchone()
    low, high = row or (None, None)
    if low is not None and not first <= low <= high < last:
        raise DatabaseError(f"{shard}: memory.{table} has ids {low} to {high}, want {first} to {last - 1} of place "
                            f"{place}; keep the order of the set, and give it empty databases")  # fmt: skip
    if low is None and place:
        connection.execute(
            SQL("ALTER TABLE {} ALTER id SET START {} SET MAXVALUE {} RESTART").format(name, first, last)
        )


def login_of(shard: Shard, tenant: str) -> str:
    """One for each tenant: a new password for one leaves the others' foreign servers as they are."""
    return f"ruvllm_{shard.name}_{_digest(tenant)}"


def _make_login(shard: Shard, tenant: str) -> tuple[str, str]:
    """The login that the coordinator reads with, its password new; the shard sees only the password's SCRAM hash."""
    name, password = login_of(shard, tenant), secrets.token_urlsafe(24)
    role = Identifier(name)
    with owner(shard.dsn) as connection:
        hashed = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
            connection.execute(SQL("CREATE ROLE {}").format(role))
        connection.execute(SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(role, Literal(hashed)))
        connection.execute(SQL("GRANT ruvllm_app TO {}").format(role))
    return name, password


def _foreign(shards: ShardSet, shard: Shard, tenant: str, login: tuple[str, str], dimension: int) -> list[Composed]:
    server, folder = Identifier(f"{shard.name}_{_digest(tenant)}"), schema_of(tenant)
    made = [
        SQL("DROP SERVER IF EXISTS {} CASCADE").format(server),
        SQL("CREATE SERVER {} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({})").format(
            server, _options(_address(shard) | _server_options(shards, tenant))
        ),
        SQL("GRANT USAGE ON FOREIGN SERVER {} TO ruvllm_app").format(server),
        SQL("CREATE FOREIGN TABLE {} ({}) SERVER {} OPTIONS (schema_name 'memory', table_name 'shard_nodes')").format(
            Identifier(folder, shard.name), SQL(_COLUMNS.format(int(dimension))), server
        ),
    ]
    made.append(
        SQL("SELECT pg_restore_relation_stats('schemaname', {}, 'relname', {}, 'relpages', 1000000000, 'reltuples',"
            " {}::real)").format(Literal(folder), Literal(shard.name), Literal(_ROWS))
    )  # fmt: skip
    mapping = _options({"user": login[0], "password": login[1]})
    for user in (SQL("CURRENT_USER"), SQL("ruvllm_app")):
        made.append(SQL("CREATE USER MAPPING FOR {} SERVER {} OPTIONS ({})").format(user, server, mapping))
    return made


def _address(shard: Shard) -> dict[str, str]:
    parts = conninfo_to_dict(shard.dsn)
    found = {key: str(parts[key]) for key in _KEPT if parts.get(key)}
    if found.get("target_session_attrs") == "read-write":
        found["target_session_attrs"] = "primary"  # the same member: our sessions are read-only everywhere
    return found


def _server_options(shards: ShardSet, tenant: str) -> dict[str, str]:
    """`extensions` makes <#> shippable, async_capable asks all shards at once."""
    quoted = re.sub(r"([\\\s])", r"\\\1", tenant)  # as libpq splits its options
    session = {
        "role": "ruvllm_app",
        "app.tenant": quoted,
        "hnsw.iterative_scan": "strict_order",
        "hnsw.ef_search": str(int(shards.ef_search)),
        "hnsw.scan_mem_multiplier": "16",  # of work_mem: how far an iterative scan may go on
        "enable_sort": "off",  # a shard without statistics would sort instead of asking its index
        "default_transaction_read_only": "on",
    }
    options = " ".join(f"-c {name}={value}" for name, value in session.items())
    return {"extensions": "vector", "async_capable": "true", "fetch_size": str(int(shards.fetch_size)),
            "connect_timeout": "5", "options": options}  # fmt: skip


def _options(values: dict[str, str]) -> Composed:
    return SQL(", ").join(SQL("{} {}").format(Identifier(key), Literal(value)) for key, value in values.items())
