"""Writers that count what was acknowledged, and the death of a primary under them; for the tests and the benchmark."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import psycopg

from ruvllm.database.standby import StandbyCluster
from ruvllm.process import send

KINDS = ("server", "machine")  # the postmaster alone, or every process of the member at once
_GIVE_UP_S = 90.0


@dataclass
class Load:
    """What the writers were told: the numbers whose INSERT was acknowledged, and when."""

    acknowledged: dict[int, float] = field(default_factory=dict)  # number -> time.monotonic()
    errors: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, count: int) -> None:
        """Until `count` more were acknowledged."""
        with self.changed:
            wanted = len(self.acknowledged) + count
            assert self.changed.wait_for(lambda: len(self.acknowledged) >= wanted, _GIVE_UP_S), "no write went through"


@dataclass(frozen=True)
class Failover:
    kind: str
    killed: str
    promoted: str
    resumed_s: float  # from the kill to the end of the longest time without an acknowledged write
    acknowledged: int
    lost: int


def make_table(dsn: str) -> None:
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS written (number bigint PRIMARY KEY)")


@contextmanager
def writing(dsn: str, writers: int = 2) -> Iterator[Load]:
    """`writers` threads insert numbers one after another, each in its own transaction, over every failure."""
    load, numbers, stop = Load(), itertools.count(time.time_ns()), threading.Event()
    threads = [threading.Thread(target=_write, args=(dsn, load, numbers, stop), daemon=True) for _ in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join(_GIVE_UP_S)


def fail_over(cluster: StandbyCluster, kind: str) -> Failover:
    """Kill the primary under load, wait for writes to go on, compare what is there with what was acknowledged."""
    killed = leader(cluster)
    with writing(cluster.dsn()) as load:
        load.wait(100)
        _kill(cluster, killed, kind)
        at = time.monotonic()
        load.wait(50)
    dsn, promoted = cluster.dsn(), leader(cluster)
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        there = {number for (number,) in connection.execute("SELECT number FROM written")}
    resumed = _resumed(at, sorted(when for when in load.acknowledged.values() if when > at)) - at
    return Failover(kind, killed, promoted, resumed, len(load.acknowledged), len(set(load.acknowledged) - there))


def end(cluster: StandbyCluster) -> None:
    """Kill every process of the cluster: nobody will start it again."""
    for name in cluster.names:
        patroni, postgres = cluster.processes(name)
        for victim in [patroni, *postgres]:
            if victim is not None:
                send(victim, signal.SIGKILL)
    cluster.stop()


def leader(cluster: StandbyCluster) -> str:
    deadline = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < deadline:
        names = [each.name for each in cluster.status() if each.role == "leader" and each.state == "running"]
        if names:
            assert len(names) == 1
            return names[0]
        time.sleep(0.1)
    raise AssertionError("no leader")


def _resumed(killed: float, acknowledged: list[float]) -> float:
    """A backend outlives its postmaster by a moment and may still acknowledge: the gap counts, not the first write."""
    gaps = [(after - before, after) for before, after in pairwise([killed, *acknowledged])]
    return max(gaps)[1]


def _kill(cluster: StandbyCluster, name: str, kind: str) -> None:
    patroni, postgres = cluster.processes(name)
    assert patroni is not None
    assert postgres
    for victim in [patroni, *postgres] if kind == "machine" else postgres[:1]:
        victim.kill()


def _write(dsn: str, load: Load, numbers: Iterator[int], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with psycopg.connect(dsn, autocommit=True, connect_timeout=2) as connection:
                _write_on(connection, load, numbers, stop)
        except psycopg.Error:
            load.errors += 1
            stop.wait(0.05)


def _write_on(connection: psycopg.Connection, load: Load, numbers: Iterator[int], stop: threading.Event) -> None:
    while not stop.is_set():
        number = next(numbers)
        connection.execute("INSERT INTO written VALUES (%s)", [number])
        with load.changed:
            load.acknowledged[number] = time.monotonic()
            load.changed.notify_all()
