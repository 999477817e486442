"""The HNSW index by corpus size: when another is due, and that searches have one while it is rebuilt or killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import psycopg
import pytest

from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.errors import ContractError, DatabaseError
from ruvllm.memory import contract, hnsw
from ruvllm.memory.hnsw import BANDS
from ruvllm.memory.tidy import bands
from ruvllm.settings import load_settings
from tests.database.plans import assert_uses_index

SMALL, MIDDLE, LARGE, _ = BANDS
SEARCH = "SELECT id FROM memory.nodes WHERE archived_at IS NULL ORDER BY embedding <#> %s::halfvec LIMIT 3"


def fill(database: Database, dimension: int, count: int = 50) -> None:
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO memory.nodes (tenant, kind, trust, content_hash, embedding)"
            " SELECT 'default', 'Fact', 'system', sha256(n::text::bytea),"
            "        l2_normalize(ARRAY(SELECT sin(n * d) FROM generate_series(1, %s) AS d)::vector)::halfvec"
            " FROM generate_series(1, %s) AS n",
            [dimension, count],
        )


def search(database: Database, dimension: int, index: str = "nodes_embedding") -> int:
    """How many rows a search finds, through the index."""
    with database.transaction() as connection:
        connection.execute("SET LOCAL enable_sort = off")
        query = [f"[1{',0' * (dimension - 1)}]"]
        assert_uses_index(connection, SEARCH, query, index)
        return len(connection.execute(SEARCH, query).fetchall())


def indexes(database: Database) -> list[tuple[str, bool, str]]:
    with database.transaction() as connection:
        return [(index.name, index.valid, index.parameters) for index in contract.indexes(connection)]


def pretend(database_url: str, nodes: int, parameters: str) -> None:
    """The catalogue's statistics of a corpus of `nodes`, and an index that says that it was built with `parameters`."""
    m, ef = parameters.split("/")
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("ANALYZE memory.nodes")
        owner.execute(f"ALTER INDEX memory.nodes_embedding SET (m = {m}, ef_construction = {ef})")
        owner.execute("UPDATE pg_class SET reltuples = %s WHERE oid = 'memory.nodes_embedding'::regclass", [nodes])


@pytest.mark.parametrize(
    ("nodes", "built", "wanted"),
    [
        (99_000, "16/100", None),
        (101_000, "16/100", MIDDLE),
        (99_000, "32/200", None),  # at the bound it stays
        (81_000, "32/200", None),
        (79_000, "32/200", SMALL),
        (1_100_000, "32/200", LARGE),
        (1_100_000, "16/100", LARGE),
        (5_000, "48/300", SMALL),
        (5_000, "12/100", SMALL),  # of no band
    ],
)
def test_a_band_is_due_when_the_corpus_has_left_the_one_that_is_built(
    database: Database, database_url: str, nodes: int, built: str, wanted: hnsw.Band | None
) -> None:
    fill(database, 384)
    pretend(database_url, nodes, built)
    with database.transaction() as connection:
        assert bands.live_nodes(connection) == nodes
        assert bands.due(connection) == wanted


def test_a_corpus_without_statistics_is_estimated_by_its_size(database: Database) -> None:
    with database.transaction() as connection:
        assert bands.live_nodes(connection) == 0
    fill(database, 384, 500)
    with database.transaction() as connection:
        assert 250 <= bands.live_nodes(connection) <= 1000


def test_a_rebuild_takes_the_place_of_the_index_and_tells_how_far_it_is(database: Database) -> None:
    fill(database, 384)
    heard: list[tuple[int, int]] = []
    bands.rebuild(database, MIDDLE, lambda done, total, note="": heard.append((done, total)))
    assert indexes(database) == [("nodes_embedding", True, "32/200")]
    assert search(database, 384) == 3
    assert heard[0][0] == 0
    assert heard[-1][0] == heard[-1][1] > 0


@pytest.mark.parametrize(
    "broken",
    [
        "DROP INDEX memory.nodes_embedding",
        "CREATE INDEX second ON memory.nodes USING hnsw (embedding halfvec_cosine_ops)",
        "DROP INDEX memory.nodes_embedding; CREATE INDEX other ON memory.nodes USING hnsw (embedding halfvec_l2_ops)",
    ],
)
def test_a_rebuild_mends_what_the_contract_refuses(database: Database, database_url: str, broken: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(broken)
    with database.transaction() as connection, pytest.raises(ContractError):
        contract.check(connection)
    bands.rebuild(database, SMALL)
    with database.transaction() as connection:
        contract.check(connection)
    assert indexes(database) == [("nodes_embedding", True, "16/100")]


def test_the_swap_waits_for_no_long_reader_and_keeps_what_was_built(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands, "_SWAP_ATTEMPTS", 2)
    monkeypatch.setattr(bands, "_SWAP_PATIENCE_MS", 1)
    monkeypatch.setattr(bands, "_POLL_S", 0.001)
    fill(database, 384)
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(
            "CREATE INDEX nodes_embedding_next ON memory.nodes USING hnsw (embedding halfvec_ip_ops)"
            " WITH (m = 32, ef_construction = 200) WHERE archived_at IS NULL"
        )
        (built,) = owner.execute("SELECT 'memory.nodes_embedding_next'::regclass::oid").fetchone() or (0,)
    with database.transaction() as reader:
        reader.execute("SELECT count(*) FROM memory.nodes")
        with pytest.raises(DatabaseError, match="no moment to put it in the place of nodes_embedding"):
            bands.rebuild(database, MIDDLE)
        assert search(database, 384, "nodes_embedding_next") == 3  # both are valid; the newer one is taken
    bands.rebuild(database, MIDDLE)
    assert indexes(database) == [("nodes_embedding", True, "32/200")]
    with database.transaction() as connection:
        assert connection.execute("SELECT 'memory.nodes_embedding'::regclass::oid").fetchone() == (built,)


def test_one_rebuild_at_a_time(database: Database) -> None:
    with database.owner() as other:
        other.execute("SELECT pg_advisory_lock(%s)", [bands._LOCK_KEY])
        with pytest.raises(DatabaseError, match="another rebuild"):
            bands.rebuild(database, MIDDLE)


@pytest.fixture
def mortal_server(open_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(load_settings({}, state_dir=open_dir / "mortal"), {"shared_buffers": "16MB"})
    upgrade(server.ensure(), "test-encoder", 8)
    yield server
    server.stop()


def kill(server: EmbeddedPostgres) -> None:
    """Every process of it at once."""
    postmaster = psutil.Process(server.status().pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=20)


def test_killed_in_the_middle_of_a_rebuild(mortal_server: EmbeddedPostgres) -> None:
    """An older transaction holds the build up, so that it is in the middle when the server is killed."""
    dsn = mortal_server.ensure()
    database = Database(dsn, revive=mortal_server.revive)
    fill(database, 8)
    with closing(psycopg.connect(dsn)) as older, ThreadPoolExecutor(1) as pool:
        older.execute("SELECT count(*) FROM memory.nodes")
        older.execute("LOCK TABLE memory.nodes IN ROW EXCLUSIVE MODE")
        rebuilding: Future[None] = pool.submit(bands.rebuild, database, MIDDLE)
        while len(indexes(database)) < 2:
            assert not rebuilding.done()
        kill(mortal_server)
        with pytest.raises(DatabaseError):
            rebuilding.result(timeout=60)
    assert search(database, 8) == 3
    assert indexes(database) == [("nodes_embedding", True, "16/100"), ("nodes_embedding_next", False, "32/200")]
    with database.transaction() as connection:
        contract.check(connection)
    bands.rebuild(database, MIDDLE)
    assert indexes(database) == [("nodes_embedding", True, "32/200")]
    assert search(database, 8) == 3
    database.close()


@pytest.mark.parametrize(
    ("k", "nodes", "budget_ms", "wanted"),
    [
        (10, 5_000, None, 64),
        (10, 500_000, None, 64),
        (100, 5_000, None, 100),
        (10, 500_000, 1.0, 32),
        (10, 5_000, 10.0, 128),
        (10, 5_000, 1e9, 256),
        (300, 5_000, 1.0, 300),
        (5_000, 5_000, None, 1000),
    ],
)
def test_ef_search_is_at_least_k_and_what_the_budget_affords(
    k: int, nodes: int, budget_ms: float | None, wanted: int
) -> None:
    assert hnsw.ef_search(k, nodes, budget_ms) == wanted


def test_the_bands_hold_every_size_once() -> None:
    assert [band.below for band in BANDS] == sorted({band.below for band in BANDS})
    assert BANDS[-1].below == float("inf") == hnsw.BUDGETS[-1].below_ms
