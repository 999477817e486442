"""Three tenants with rows in every table, and the statements that try to get at another one's."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import Connection, sql

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import merge
from ruvllm.settings import Settings

TENANTS = ("tenant-ash", "tenant-birch", "tenant-cedar")
SEED = 11
HOSTILE = ("' OR true --", "tenant-birch'; --", "%", "{}", "*", "\\", '"', 'tenant-ash" OR 1=1', "NULL", "🌲")


def secret(tenant: str) -> str:
    return f"secret{tenant.removeprefix('tenant-')}word"


@dataclass
class World:
    """Three tenants with rows in every table; `ids` and `uuids` of each one's nodes, `edges` of its edges."""

    database_url: str
    embedder: EmbeddingAdapter
    ids: dict[str, list[int]] = field(default_factory=dict)
    uuids: dict[str, list[str]] = field(default_factory=dict)
    tables: list[sql.Identifier] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)

    def leaked(self, mine: str, found: object) -> bool:
        """Whether `found` shows another tenant's name or secret."""
        text = str(found)
        return any(other in text or secret(other) in text for other in TENANTS if other != mine)


# What Memory does not write by itself, a row a table.
ROWS = """
    INSERT INTO memory.writes (tenant, key, node, outcome, reason) VALUES (%(t)s, %(t)s, %(n)s, 'written', %(s)s);
    INSERT INTO memory.maintained (tenant, last_node) VALUES (%(t)s, 1);
    INSERT INTO memory.runs (tenant, kind, dry_run, cap, reason) VALUES (%(t)s, 'dedup', true, 1, %(s)s);
    INSERT INTO memory.ingest (tenant, kind, trust, content_hash, text, source)
        VALUES (%(t)s, 'Fact', 'system', sha256(%(b)s::bytea), %(s)s, %(t)s);
    INSERT INTO memory.canary_queries (tenant, question, embedding, expected, origin)
        SELECT tenant, %(s)s, embedding, id, %(t)s FROM memory.nodes WHERE id = %(n)s;
    INSERT INTO serving.interactions (request_id, tenant, question, answer, tier, context_bin, temperature, top_p,
        decided_by, propensity, router_version, ladder, layout_hash, features, prompt_tokens, completion_tokens, cost,
        stage_ms, total_ms)
        VALUES (%(t)s, %(t)s, %(s)s, %(s)s, 't', 256, 0, 1, 'forced', 1, '', '', '', '{}', 1, 1, 1, '{}', 1);
    INSERT INTO serving.feedback (tenant, interaction, correction)
        SELECT tenant, id, %(s)s FROM serving.interactions WHERE tenant = %(t)s;
    INSERT INTO serving.outbox (tenant, kind, interaction, idempotency_key)
        SELECT tenant, 'score', id, %(t)s FROM serving.interactions WHERE tenant = %(t)s;
    INSERT INTO learning.oracle_queries (key, tenant, cycle_id, question, gold, kind, domain, split, grouping,
        layout_hash, features, embedding, retrieved)
        VALUES (%(t)s, %(t)s, 'c', %(s)s, '{}', '', '', 'train', '', '', '{}', '{}', '{}');
    INSERT INTO learning.replay (tenant, slot, query) VALUES (%(t)s, 0, %(t)s);
"""


def build(database_url: str, settings: Settings) -> World:
    made = World(database_url, EmbeddingAdapter(HashingEncoder()))
    for tenant in TENANTS:
        _fill(made, Database(database_url, tenant), settings)
    with psycopg.connect(database_url) as owner:
        found = owner.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant'"
            " WHERE c.relkind = 'r' AND n.nspname IN ('memory', 'serving', 'learning') ORDER BY 1, 2"
        ).fetchall()
    made.tables = [sql.Identifier(*row) for row in found]
    return made


def _fill(world: World, database: Database, settings: Settings) -> None:
    tenant = database.tenant
    memory = Memory(database, world.embedder, settings)
    texts = [f"{secret(tenant)} fact {i} of the shared topic" for i in range(30)]
    nodes = [
        NewNode(text, "Fact", tenant, tenant, "untrusted" if i % 3 == 0 else "system", tenant, (tenant,), {"t": tenant})
        for i, text in enumerate(texts)
    ]
    ids = memory.add([*nodes, NewNode("the same text in every tenant"), NewNode(f"{tenant} concept", "Concept")]).ids
    memory.link_all([(a, b, "Cites", 0.5) for a, b in itertools.pairwise(ids)], tenant)
    memory.touch(list(ids[:5]))
    with database.transaction() as connection:
        merge.absorb(connection, ids[1], ids[2], why=secret(tenant), by=tenant)
        values = {"t": tenant, "s": secret(tenant), "b": tenant.encode(), "n": ids[0]}
        for statement in ROWS.split(";\n"):
            if statement.strip():
                connection.execute(statement.encode(), values)
        world.uuids[tenant] = [str(row[0]) for row in connection.execute("SELECT uuid FROM memory.nodes ORDER BY id")]
    world.ids[tenant] = list(ids)
    database.close()


def state(database_url: str, tables: Sequence[sql.Identifier]) -> list[tuple[object, ...]]:
    """Every row of every tenant, as the superuser sees it."""
    read = sql.SQL(
        "SELECT tenant, count(*), md5(string_agg(t::text, '' ORDER BY t::text)) FROM {} AS t GROUP BY tenant"
        " ORDER BY tenant"
    )
    with psycopg.connect(database_url) as owner:
        return [(str(table), *row) for table in tables for row in owner.execute(read.format(table))]


# -- SQL as the application's role

READS = (
    "SELECT t::text FROM {table} t",
    "SELECT t::text FROM {table} t WHERE tenant = %(other)s",
    "SELECT t::text FROM {table} t WHERE tenant <> %(mine)s OR tenant IS NULL",
    "SELECT DISTINCT tenant FROM {table}",
    "SELECT t::text FROM {table} t WHERE t::text LIKE '%%' || %(secret)s || '%%'",
    "SELECT t::text FROM {table} t TABLESAMPLE SYSTEM (100) WHERE tenant = %(other)s",
    "SELECT t::text FROM {table} t WHERE tenant = ANY(%(others)s) FOR UPDATE",
    "WITH x AS MATERIALIZED (SELECT * FROM {table}) SELECT x::text FROM x WHERE tenant = %(other)s",
    "SELECT string_agg(t::text, '') FROM {table} t WHERE tenant > ''",
    "SELECT (SELECT t::text FROM {table} t WHERE tenant = %(other)s LIMIT 1)",
    "SELECT a::text FROM {table} a JOIN {table} b ON a.tenant <> b.tenant",
    "UPDATE {table} t SET tenant = %(mine)s WHERE tenant = %(other)s RETURNING 'tenant-hit', t::text",
    "UPDATE {table} SET tenant = %(other)s RETURNING 'tenant-hit'",
    "DELETE FROM {table} WHERE tenant = %(other)s RETURNING tenant",
)
AIMED = (
    "SELECT n::text FROM memory.nodes n WHERE id = %(id)s",
    "SELECT n::text FROM memory.nodes n WHERE uuid = %(uuid)s",
    "SELECT t::text FROM memory.node_texts t WHERE node = %(id)s",
    "SELECT e::text FROM memory.edges e WHERE src = %(id)s OR dst = %(id)s",
    "SELECT a::text FROM memory.adjacency a WHERE node = %(id)s OR %(id)s = ANY(neighbours)",
    "SELECT c::text FROM memory.changes c WHERE node = %(id)s",
    "SELECT w::text FROM memory.node_words w WHERE node = %(id)s",
    "SELECT n::text FROM memory.nodes n ORDER BY embedding <#> "
    "(SELECT embedding FROM memory.nodes WHERE id = %(id)s) LIMIT 5",
    "SELECT t.text FROM memory.word_scores(%(secret)s) s JOIN memory.node_texts t USING (node)",
    "SELECT node, tenant FROM memory.word_scores(%(secret)s) JOIN memory.node_words USING (node)",
    "SELECT memory.tagged(ARRAY[%(other)s])::text || ' tenant-tagged'",
    "UPDATE memory.node_texts SET text = 'x' WHERE node = %(id)s RETURNING text || ' tenant-hit'",
    "DELETE FROM memory.edges WHERE src = %(id)s RETURNING 'tenant-hit'",
    "DELETE FROM memory.nodes WHERE id = %(id)s RETURNING 'tenant-hit'",
    "INSERT INTO memory.edges (tenant, src, dst, rel, created_by) VALUES (%(mine)s, %(own)s, %(id)s, 'Cites', '')"
    " RETURNING 'tenant-linked'",
    "INSERT INTO memory.edges (tenant, src, dst, rel, created_by) VALUES (%(other)s, %(id)s, %(id2)s, 'Follows', '')"
    " RETURNING 'tenant-linked'",
    "INSERT INTO memory.node_usage (node, tenant, uses) VALUES (%(id)s, %(mine)s, 9)"
    " ON CONFLICT (node) DO UPDATE SET uses = 9 RETURNING 'tenant-hit'",
    "INSERT INTO memory.node_texts (node, tenant, text, source) VALUES (%(id)s, %(mine)s, 'x', '')"
    " ON CONFLICT (node) DO UPDATE SET text = 'x' RETURNING 'tenant-hit'",
    "INSERT INTO memory.writes (tenant, key, node, outcome) VALUES (%(mine)s, 'probe', %(id)s, 'written')"
    " RETURNING 'tenant-linked'",
    "UPDATE memory.nodes SET superseded_by = %(id)s, archived_at = now() WHERE id = %(own)s RETURNING 'tenant-linked'",
    "SELECT memory.refresh_adjacency(ARRAY[%(id)s]), 'own'",
)
COPIES = (
    "COPY (SELECT t FROM {table} t WHERE tenant = {other}) TO STDOUT",
    "COPY {table} TO STDOUT",
    "COPY (SELECT tenant FROM {table}) TO STDOUT (FORMAT csv)",
)


def values(world: World, mine: str, other: str, luck: random.Random) -> dict[str, object]:
    return {
        "mine": mine, "other": other, "others": [t for t in TENANTS if t != mine], "secret": secret(other),
        "id": luck.choice(world.ids[other]), "id2": luck.choice(world.ids[other]),
        "uuid": luck.choice(world.uuids[other]), "own": world.ids.get(mine, [0])[0],
    }  # fmt: skip


def sql_attempts(world: World, run: Callable[[str, str, Any, dict[str, object]], None], count: int) -> None:
    """Random statements, each as one tenant and aimed at another; a few as nobody or under a hostile name."""
    luck = random.Random(SEED)
    for _ in range(count):
        mine = luck.choice((*TENANTS, *TENANTS, *TENANTS, "", *HOSTILE))
        other = luck.choice([tenant for tenant in TENANTS if tenant != mine])
        table = luck.choice(world.tables)
        kind = luck.random()
        if kind < 0.05:
            statement: Any = sql.SQL(luck.choice(COPIES)).format(table=table, other=sql.Literal(other))
            run("copy", mine, statement, {})
        elif kind < 0.5:
            run("aimed", mine, luck.choice(AIMED), values(world, mine, other, luck))
        else:
            statement = sql.SQL(luck.choice(READS)).format(table=table)
            run("tables", mine, statement, values(world, mine, other, luck))


def answer(connection: Connection, path: str, statement: Any, given: dict[str, object]) -> object:
    """Rows, or the error's text; a statement of ours that is wrong in itself is no attempt."""
    try:
        if path == "copy":
            with connection.cursor().copy(statement) as copy:
                return b"".join(bytes(block) for block in copy).decode()
        found = connection.execute(statement.encode() if isinstance(statement, str) else statement, given)
        return found.fetchall() if found.description else []
    except (psycopg.errors.SyntaxError, psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable):
        raise
    except psycopg.Error as error:
        # what the statement itself named is no news
        return str(error.diag.message_primary or "").replace(str(given.get("other")), "")


# -- SQL as an analyst

VIEWS = (
    "me", "nodes", "embeddings", "edges", "neighbours", "sources", "kinds", "growth", "usage", "concepts",
    "supersessions", "runs", "writes", "waiting", "canary_queries", "duplicates_pending",
)  # fmt: skip
PRELUDES = (
    "SET app.tenant = '{other}'",
    "SET ROLE NONE",
    "RESET ROLE",
    "SET row_security = off",
    "SET row_security = on",
    "SET search_path = pg_temp, analytics, public",
    "SET search_path = analytics, public",
    "SET app.run = '1'",
    "SET default_transaction_read_only = off",
    "SET enable_indexscan = off",
    "SET enable_indexscan = on",
    "SET plan_cache_mode = force_generic_plan",
    "SET session_replication_role = replica",
    "SET SESSION AUTHORIZATION DEFAULT",
)
# peek() costs nothing, so the planner runs it first where it may; it remembers what it was shown
TEMPORARY = (
    "CREATE TEMP TABLE seen (what text)",
    "CREATE TEMP TABLE analysts (login text, tenant text)",
    "CREATE TEMP TABLE nodes (id bigint, tenant text, text text)",
    "CREATE TEMP TABLE node_texts (node bigint, tenant text, text text)",
    """
    CREATE FUNCTION pg_temp.peek(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
    BEGIN INSERT INTO pg_temp.seen VALUES ($1::text); RETURN true; END $$
    """,
    "CREATE FUNCTION pg_temp.my_tenant() RETURNS text LANGUAGE sql AS $$ SELECT 'tenant-birch' $$",
    "CREATE FUNCTION pg_temp.current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT 'tenant-birch' $$",
    "CREATE OPERATOR pg_temp.= (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_catalog.textne)",
    """
    CREATE FUNCTION pg_temp.steal() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS
    $$ SELECT n::text FROM analytics.nodes n $$
    """,
)
LOOKS = (
    "SELECT v::text FROM analytics.{view} v",
    "SELECT v::text FROM analytics.{view} v WHERE v::text LIKE '%{secret}%'",
    "SELECT v::text FROM analytics.{view} v WHERE pg_temp.peek(v::text)",
    "SELECT count(*) FROM analytics.{view} v WHERE pg_temp.peek(v::text) AND random() < 2",
    "SELECT v::text FROM analytics.{view} v WHERE 1 / (CASE WHEN v::text LIKE '%{secret}%' THEN 0 ELSE 1 END) = 1",
    "SELECT v::text FROM analytics.{view} v WHERE set_config('app.tenant', '{other}', false) IS NOT NULL",
    "SELECT v::text FROM analytics.{view} v OFFSET 0",
    "SELECT (SELECT string_agg(v::text, '') FROM analytics.{view} v)",
    "SELECT pg_temp.steal()",
    "SELECT n::text FROM analytics.nodes n WHERE id = {id} OR uuid = '{uuid}'",
    "SELECT n::text FROM analytics.neighbours n WHERE node = {id} OR neighbour = {id}",
    "SELECT f::text FROM analytics.memory_search_like({id}, 1000) f",
    "SELECT f::text FROM analytics.memory_search_text('{secret}', 1000, '{filter}') f",
    "SELECT f::text FROM analytics.memory_search('{vector}', 1000, '{filter}') f",
    "SELECT f::text FROM analytics.memory_search('{vector}', 3, '{filter}') f WHERE pg_temp.peek(f::text)",
    "SELECT n::text FROM memory.nodes n",
    "SELECT a::text FROM memory.analysts a",
    "SELECT analytics.nearest('{vector}', 10, NULL)::text",
    "SELECT s::text FROM pg_stats s WHERE tablename IN ('nodes', 'node_texts') AND schemaname = 'memory'",
    "SELECT statement FROM pg_prepared_statements UNION ALL SELECT query FROM pg_stat_activity",
    "SELECT memory.word_scores('{secret}')::text",
    "UPDATE analytics.nodes SET text = 'x' RETURNING text",
    "INSERT INTO memory.analysts VALUES (session_user, '{other}') RETURNING 'tenant-birch'",
)  # fmt: skip


def hostile_filter(luck: random.Random, other: str) -> str:
    return luck.choice(
        ("{}", f'{{"reader": "{other}"}}', f'{{"reader": "{other}", "trusts": ["untrusted"]}}',
         f'{{"domains": ["{other}"]}}', f'{{"tags": ["{other}"]}}', f'{{"tenant": "{other}"}}',
         '{"trusts": ["system", "corroborated", "untrusted"]}', '{"reader": "%"}', '{"kinds": null}')
    )  # fmt: skip


def a_filter(other: str, luck: random.Random) -> Filter:
    return luck.choice(
        (Filter(reader=other), Filter(domains=(other,), reader=other), Filter(tags=(other,), reader=other),
         Filter(trusts=("untrusted",), reader=other), Filter(since=datetime(2000, 1, 1, tzinfo=UTC)),
         Filter(kinds=("Fact",), reader=luck.choice(HOSTILE)), Filter(tags=(luck.choice(HOSTILE),)))
    )  # fmt: skip
