"""A primary killed under load: writes go on, none that was acknowledged is lost, and there is one primary."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import yaml

from ruvllm.database.account import service_account
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.database.standby import StandbyCluster, _runtime
from ruvllm.errors import DatabaseError
from ruvllm.settings import PROJECT_ROOT
from tests.database.failover import Failover, end, fail_over, leader, make_table

SMALL = {"shared_buffers": "16MB", "max_connections": "30", "fsync": "off", "io_method": "sync"}


@pytest.fixture(scope="module")
def cluster(open_dir: Path) -> Iterator[StandbyCluster]:
    try:
        _runtime(service_account())
    except DatabaseError as error:
        pytest.skip(str(error))
    made = StandbyCluster(open_dir / "standby", SMALL)
    try:
        made.start()
        yield made
    finally:
        end(made)


@pytest.fixture(scope="module")
def failed_over(cluster: StandbyCluster) -> Failover:
    """Our schema and pool, a primary killed with -9 under two writers; then all members are whole again."""
    upgrade(cluster.dsn(), "test-encoder", 64)
    make_table(cluster.dsn())
    done = fail_over(cluster, "server")
    cluster.wait_protected()
    return done


def test_no_acknowledged_write_is_lost_and_another_member_goes_on(failed_over: Failover) -> None:
    assert failed_over.acknowledged >= 150
    assert failed_over.lost == 0
    assert failed_over.promoted != failed_over.killed
    assert failed_over.resumed_s < 30


def test_the_former_primary_is_a_standby(cluster: StandbyCluster, failed_over: Failover) -> None:
    roles = {each.name: each.role for each in cluster.status()}
    assert sorted(roles.values()) == ["leader", "replica", "sync_standby"]
    assert leader(cluster) != failed_over.killed
    ports, _ = cluster._kept()
    recovering = [_ask(cluster, port.postgres, "SELECT pg_is_in_recovery()") for port in ports.values()]
    assert sorted(recovering) == [False, True, True]


def test_a_commit_waits_for_the_standby(cluster: StandbyCluster, failed_over: Failover) -> None:
    with psycopg.connect(cluster.dsn()) as connection:
        row = connection.execute(
            "SELECT current_setting('synchronous_commit'), array_agg(application_name) FROM pg_stat_replication"
            " WHERE sync_state = 'sync'"
        ).fetchone()
    assert row is not None
    assert row[0] == "on"
    assert len(row[1]) == 1


def test_our_pool_finds_the_primary_and_readers_a_standby(cluster: StandbyCluster, failed_over: Failover) -> None:
    with closing(Database(cluster.dsn())) as database, database.transaction() as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
    with closing(Database(cluster.dsn(reads=True))) as database, database.transaction() as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("INSERT INTO memory.change_log DEFAULT VALUES")


def test_secrets_are_the_servers_users_alone(cluster: StandbyCluster) -> None:
    files = [cluster.folder / "cluster.json", *cluster.folder.glob("*/patroni.yml")]
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    kept = cluster._kept()[1]
    assert kept.superuser not in repr(kept)
    raft = json.loads(files[1].read_text())["raft"]
    assert raft["password"]  # Raft's members speak pickle: who does not know it is not listened to
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(cluster.dsn().replace(kept.superuser, "wrong"))


def test_a_folder_without_a_cluster_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"no cluster\.json"):
        StandbyCluster(tmp_path).dsn()


def test_the_configuration_for_machines_of_their_own_says_the_same(tmp_path: Path) -> None:
    """What was tested here is what is recommended there."""
    shared = StandbyCluster(tmp_path)._shared()
    recommended = yaml.safe_load((PROJECT_ROOT / "infra" / "ha" / "patroni.yml").read_text())["bootstrap"]["dcs"]
    del shared["postgresql"]["parameters"], recommended["postgresql"]["parameters"]
    assert recommended == shared


def _ask(cluster: StandbyCluster, port: int, question: str) -> object:
    with psycopg.connect(f"host=127.0.0.1 port={port} user=ruvllm dbname=ruvllm password={cluster._kept()[1].superuser}"
                         ) as connection:  # fmt: skip
        row = connection.execute(question).fetchone()
    return row[0] if row else None
