"""A written-back answer is found by a paraphrase after Postgres was killed with -9."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ruvllm.database import EmbeddedPostgres, open_database
from ruvllm.embedding import open_embedder
from ruvllm.errors import DatabaseError
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings


def _kill(pid: int) -> None:
    """The postmaster and every process of it, at once, none of them asked."""
    postmaster = psutil.Process(pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=20)


def test_found_by_a_paraphrase_after_kill_9(settings: Settings, open_dir: Path) -> None:
    settings = replace(settings, state_dir=open_dir / "killed")
    server = EmbeddedPostgres(settings)
    database = open_database(settings)  # durable: fsync is on, as in use
    try:
        memory = Memory(database, open_embedder(settings), settings)
        memory.add([NewNode(f"{name} lies on the river {name}a.") for name in ("Alba", "Beta", "Gamma", "Delta")])
        written = memory.write_back("What is the population of Ghana?", "33 million people", 1.0, "gold")
        pid = server.status().pid
        assert pid is not None
        _kill(pid)
        with pytest.raises(DatabaseError, match="Postgres"):
            memory.counts()
        began = time.monotonic()
        server.ensure()
        [hit] = memory.search_text("How many people live in Ghana?", 1)
        assert hit.node.id == written.node
        assert memory.counts() == {"Document": 4, "Fact": 1, "nodes": 5, "archived": 0, "edges": 0}
        assert time.monotonic() - began < 30
    finally:
        database.close()
        server.stop()
