"""Answers that wait on disk for Postgres: none lost, none twice, bounded, whatever a crash tears."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ruvllm.answering.interactions import Interaction, Interactions
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, SpoolFullError
from ruvllm.router.layout import LAYOUT
from ruvllm.serving.spool import Spool, Spooled
from ruvllm.serving.tenants import tenant_database

Taken = list[tuple[str, str]]


def row(request_id: str, **more: object) -> Interaction:
    """A whole row of serving.interactions."""
    return Interaction(
        {
            "request_id": request_id, "cycle_id": None, "session_id": None, "turn": 1, "question": "Capital of Peru?",
            "history": "[]", "answer": "Lima", "gold": None, "domain": "geography", "tier": "smollm2-135m",
            "context_bin": 512, "temperature": 0.0, "top_p": 1.0, "decided_by": "cold-start", "confidence": None,
            "propensity": 0.5, "router_version": "", "ladder": "packaged", "layout_hash": LAYOUT.hash,
            "features": [0.0] * 128, "retrieved": [], "similarities": [], "used": [], "writer": "",
            "prompt_tokens": 20, "cached_tokens": 0, "completion_tokens": 5, "cost": 0.1, "stage_ms": "{}",
            "total_ms": 12.0, "degraded": ["memory"], **more,
        }
    )  # fmt: skip


def into(taken: Taken) -> Callable[[str, Interaction], None]:
    return lambda tenant, each: taken.append((tenant, str(each.values["request_id"])))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_what_waited_is_stored_once_in_order_under_its_tenant(spool: Spool, database: Database) -> None:
    for tenant, request in (("default", "r1"), ("acme", "r2"), ("default", "r3")):
        spool.append(tenant, row(request))
    spool.append("default", row("r1"))  # sent again by a client that heard no answer
    assert spool.depth == 4

    def record(tenant: str, each: Interaction) -> None:
        Interactions(tenant_database(database, tenant)).record(each)

    assert spool.replay(record) == 4
    assert (spool.depth, spool.size) == (0, 0)
    assert spool.replay(record) == 0
    for tenant, wanted in (("default", ["r1", "r3"]), ("acme", ["r2"])):
        with database.transaction(tenant) as connection:
            stored = connection.execute("SELECT request_id FROM serving.interactions ORDER BY id").fetchall()
            queued = connection.execute("SELECT idempotency_key FROM serving.outbox ORDER BY id").fetchall()
        assert [each[0] for each in stored] == wanted
        assert [each[0] for each in queued] == [f"{tenant}:answer:{request}" for request in wanted]


def test_while_postgres_is_away_the_rest_waits_and_goes_on_where_it_was(spool: Spool) -> None:
    taken: Taken = []

    def record(tenant: str, each: Interaction) -> None:
        if len(taken) == 2:
            raise DatabaseError("away again")
        into(taken)(tenant, each)

    for n in range(4):
        spool.append("t", row(f"r{n}"))
    with pytest.raises(DatabaseError, match="away again"):
        spool.replay(record)
    assert spool.depth == 2
    spool.append("t", row("r4"))
    assert spool.replay(into(taken)) == 3
    assert taken == [("t", f"r{n}") for n in range(5)]


def test_a_crash_in_the_middle_of_a_replay_repeats_and_loses_nothing(spool: Spool) -> None:
    for n in range(3):
        spool.append("t", row(f"r{n}"))
    taken: Taken = []

    def record(tenant: str, each: Interaction) -> None:
        if len(taken) == 1:
            raise KeyboardInterrupt
        into(taken)(tenant, each)

    with pytest.raises(KeyboardInterrupt):
        spool.replay(record)
    again: Taken = []
    assert Spool(spool.folder).replay(into(again)) == 3  # another process knows only the files
    assert again == [("t", f"r{n}") for n in range(3)]


def test_one_that_postgres_refuses_does_not_hold_up_the_others(spool: Spool, database: Database) -> None:
    spool.append("default", row("bad", context_bin=3))
    spool.append("default", row("good"))
    interactions = Interactions(database)
    assert spool.replay(lambda _, each: interactions.record(each)) == 1
    assert (spool.refused, spool.depth) == (1, 0)
    with pytest.raises(psycopg.Error):
        interactions.record(row("bad", context_bin=3))


def test_full_is_an_error_and_keeps_what_is_there(tmp_path: Path) -> None:
    size = len(Spooled("t", row("r0").values).to_line())
    spool = Spool(tmp_path, limit_bytes=2 * size + 1)
    spool.append("t", row("r0"))
    spool.append("t", row("r1"))
    with pytest.raises(SpoolFullError, match="RUVLLM_SPOOL_MB"):
        spool.append("t", row("r2"))
    taken: Taken = []
    spool.replay(into(taken))
    spool.append("t", row("r2"))
    assert [request for _, request in taken] == ["r0", "r1"]


def test_it_is_readable_by_its_owner_alone(spool: Spool) -> None:
    spool.append("t", row("r0"))
    assert spool.folder.stat().st_mode & 0o077 == 0
    assert (spool.folder / "waiting.log").stat().st_mode & 0o077 == 0


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), damage=st.integers(0, 10_000), text=st.text(max_size=50))
def test_a_torn_or_damaged_line_takes_no_other_with_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, damage: int, text: str
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"))
    for n in range(3):
        spool.append("t", row(f"r{n}", answer=text))
    path = spool.folder / "waiting.log"
    content = bytearray(path.read_bytes())
    content[damage % len(content)] ^= 0x40
    path.write_bytes(content[: len(content) - cut % 200])
    spool.append("t", row("after"))  # appended behind whatever a crash left
    taken: Taken = []
    spool.replay(into(taken))
    requests = [request for _, request in taken]
    assert requests[-1] == "after"
    assert len(requests) >= 2
    assert requests[:-1] == sorted(set(requests[:-1]))


_WRITER = """
import sys
from pathlib import Path
from ruvllm.serving.spool import Spool
from tests.serving.test_spool import row
spool = Spool(Path(sys.argv[1]))
for n in range(100_000):
    spool.append("t", row(f"{sys.argv[2]}-{n}"))
    print(n, flush=True)  # acknowledged: it is on disk
"""


def test_what_was_acknowledged_before_kill_9_is_there(spool: Spool) -> None:
    acknowledged: list[str] = []
    for life in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(spool.folder), str(life)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(20):
            acknowledged.append(f"{life}-{writer.stdout.readline().strip()}")
        writer.send_signal(signal.SIGKILL)
        acknowledged += [f"{life}-{line.strip()}" for line in writer.stdout]
        writer.wait(10)
        writer.stdout.close()
    taken: Taken = []
    spool.replay(into(taken))
    requests = [request for _, request in taken]
    assert set(acknowledged) <= set(requests)
    assert len(requests) == len(set(requests)) <= len(acknowledged) + 3
