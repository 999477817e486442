"""What a member does that is cut off; a minute each, so not in the ordinary suite.

    python -m pytest -m benchmark tests/benchmarks/memory/test_failover.py

How soon writes go on after a kill is measured by `python -m tests.benchmarks.memory.scale failovers`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from ruvllm.database.standby import StandbyCluster
from tests.database.failover import end, leader, make_table

pytestmark = pytest.mark.benchmark
SMALL = {"shared_buffers": "16MB", "max_connections": "30", "fsync": "off", "io_method": "sync"}


@pytest.fixture
def cluster(open_dir: Path, request: pytest.FixtureRequest) -> Iterator[StandbyCluster]:
    made = StandbyCluster(open_dir / request.node.name[:20], SMALL)
    try:
        make_table(made.start())
        yield made
    finally:
        end(made)


def test_a_primary_that_nobody_keeps_acknowledges_nothing_once_it_is_replaced(cluster: StandbyCluster) -> None:
    """Patroni alone is killed: its Postgres lives on, and another is promoted when the key has run out."""
    old = leader(cluster)
    patroni, _ = cluster.processes(old)
    assert patroni is not None
    patroni.kill()
    acknowledged: list[tuple[int, float]] = []
    writer = threading.Thread(target=_write, args=(_only(cluster, old), acknowledged), daemon=True)
    writer.start()
    _until(lambda: leader(cluster) != old)
    promoted = time.monotonic()
    time.sleep(5)  # the null hypothesis needs time to show itself
    assert acknowledged
    assert acknowledged[-1][1] < promoted + 1
    with psycopg.connect(_only(cluster, leader(cluster))) as connection:
        there = {number for (number,) in connection.execute("SELECT number FROM written")}
    assert {number for number, _ in acknowledged} <= there


def test_a_primary_without_a_majority_refuses_writes(cluster: StandbyCluster) -> None:
    primary = leader(cluster)
    for name in set(cluster.names) - {primary}:
        patroni, postgres = cluster.processes(name)
        for victim in [patroni, *postgres]:
            assert victim is not None
            victim.kill()
    _until(lambda: _ask(_only(cluster, primary), "SELECT pg_is_in_recovery()") is True)


def _only(cluster: StandbyCluster, name: str) -> str:
    ports, kept = cluster._kept()
    return f"host=127.0.0.1 port={ports[name].postgres} user=ruvllm dbname=ruvllm password={kept.superuser}"


def _write(dsn: str, acknowledged: list[tuple[int, float]]) -> None:
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for number in range(10**9):
                connection.execute("INSERT INTO written VALUES (%s)", [number])
                acknowledged.append((number, time.monotonic()))
    except psycopg.OperationalError:
        return


def _ask(dsn: str, question: str) -> object:
    try:
        with psycopg.connect(dsn, connect_timeout=2) as connection:
            row = connection.execute(question).fetchone()
    except psycopg.OperationalError:
        return None
    return row[0] if row else None


def _until(holds: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
