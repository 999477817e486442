"""What was acknowledged is there after Postgres was killed with -9, once and whole; and a paraphrase finds it."""

import time
from dataclasses import replace
from pathlib import Path

from ruvllm.database import EmbeddedPostgres, open_database
from ruvllm.embedding import open_embedder
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings
from tests.benchmarks.memory.kills import CONTROL, Torture, kill_all

KILLS = 50
CONTROLS = 3


def test_found_by_a_paraphrase_after_kill_9(settings: Settings, open_dir: Path) -> None:
    """Nobody starts the server again but the next who asks it."""
    settings = replace(settings, state_dir=open_dir / "killed")
    server = EmbeddedPostgres(settings)
    database = open_database(settings)  # durable: fsync is on, as in use
    try:
        memory = Memory(database, open_embedder(settings), settings)
        memory.add([NewNode(f"{name} lies on the river {name}a.") for name in ("Alba", "Beta", "Gamma", "Delta")])
        written = memory.write_back("What is the population of Ghana?", "33 million people", 1.0, "gold")
        pid = server.status().pid
        assert pid is not None
        kill_all(pid)
        began = time.monotonic()
        [hit] = memory.search_text("How many people live in Ghana?", 1)
        assert hit.node.id == written.node
        assert memory.counts() == {"Document": 4, "Fact": 1, "nodes": 5, "archived": 0, "edges": 0}
        assert time.monotonic() - began < 30
    finally:
        database.close()
        server.stop()


def test_fifty_kills_under_write_back_load_lose_nothing(open_dir: Path) -> None:
    tally = Torture(open_dir / "tortured", load_s=0.05).run(KILLS)
    assert tally.kills == KILLS
    assert tally.in_flight >= KILLS * 0.8  # it was killed while writes were under way
    assert tally.acknowledged >= KILLS * 4
    assert (tally.lost, tally.duplicates, tally.half_rows, tally.gaps) == (0, 0, 0, 0), tally.as_text()


def test_the_null_control_loses_some(open_dir: Path) -> None:
    """The method can fail: acknowledged before it is on disk, writes are lost, and it is seen."""
    tally = Torture(open_dir / "control", CONTROL, load_s=0.05).run(CONTROLS)
    assert tally.lost > 0, tally.as_text()
