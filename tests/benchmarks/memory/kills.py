"""kill -9 of Postgres under write-back load, again and again: what was acknowledged must be there, once and whole.

    python -m tests.benchmarks.memory.kills --kills 1000
    python -m tests.benchmarks.memory.kills --kills 20 --control     # the null control: this one must lose some

Each writer counts for itself and sends its next write only when the one before was acknowledged; one whose outcome is
unknown is sent again under its key, as a client would. A write counts as acknowledged when `write` has returned in the
writer, never by what the database says. So of each writer there must survive 1..n with n the acknowledged or one more.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ruvllm.database import EmbeddedPostgres
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import DatabaseError
from ruvllm.memory.writing.writeback import Answered, write
from ruvllm.settings import Settings, load_settings

WRITERS = 4
# The control acknowledges what only shared memory holds; nothing but the end of the long delay would write it out.
CONTROL = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}

# Nodes that lack their text or one of their 16 bands, texts without a node, edges and keys that lead nowhere.
_HALF_ROWS = """
    SELECT (SELECT count(*) FROM memory.nodes n WHERE NOT EXISTS (
               SELECT FROM memory.node_texts t WHERE t.node = n.id))
         + (SELECT count(*) FROM memory.nodes n WHERE n.archived_at IS NULL AND 16 <> (
               SELECT count(*) FROM memory.minhash_bands b WHERE b.node = n.id))
         + (SELECT count(*) FROM memory.writes WHERE reason = 'claimed' OR node IS NULL)
"""
_HELD = """
    SELECT t.metadata ->> 'question', count(*) FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    WHERE n.archived_at IS NULL AND t.source = 'qa_pair' GROUP BY 1
"""


@dataclass
class Writer:
    """One client: `acknowledged` is its own count, `sent` the number of its latest write."""

    name: str
    acknowledged: int = 0
    sent: int = 0
    resent: int = 0

    def question(self, number: int) -> str:
        return f"What is stored under {self.name} {number}?"


@dataclass
class Tally:
    """What the kills did. `lost` were acknowledged and are not there; `gaps` are writers whose rows are no prefix."""

    kills: int = 0
    acknowledged: int = 0
    resent: int = 0
    lost: int = 0
    duplicates: int = 0
    half_rows: int = 0
    gaps: int = 0
    in_flight: int = 0  # kills that hit at least one write under way
    seconds: float = 0.0
    recovery_s: list[float] = field(default_factory=list)

    def as_text(self) -> str:
        slowest = max(self.recovery_s, default=0.0)
        middle = sorted(self.recovery_s)[len(self.recovery_s) // 2] if self.recovery_s else 0.0
        bound = f"; rule of three: loss a kill <= {3 / self.kills:.4f} at 95 %" if self.kills and not self.lost else ""
        return (
            f"{self.kills} kills in {self.seconds:.0f} s ({self.in_flight} with a write under way):"
            f" {self.acknowledged} acknowledged, {self.resent} sent again, {self.lost} lost,"
            f" {self.duplicates} duplicates, {self.half_rows} half rows, {self.gaps} writers with a gap;"
            f" writes resumed after {middle:.2f} s (median), {slowest:.2f} s (longest){bound}"
        )


class Torture:
    """A server, its writers, and the one who kills."""

    def __init__(
        self, folder: Path, overrides: dict[str, str] | None = None, seed: int = 1, load_s: float = 0.1
    ) -> None:
        self.settings: Settings = load_settings({}, state_dir=folder)
        self.server = EmbeddedPostgres(self.settings, overrides)
        self.embedder = EmbeddingAdapter(HashingEncoder())
        self.random = random.Random(seed)
        self.load_s = load_s  # of load before a kill, at most, beyond one write of each writer
        self.writers = [Writer(f"W{i}") for i in range(WRITERS)]
        self.tally = Tally()
        self._ending = threading.Event()
        self._busy = [False] * WRITERS

    def run(self, kills: int, report_every: int = 100) -> Tally:
        """`kills` times: load, kill, recover; then count."""
        dsn = self.server.ensure()
        upgrade(dsn, self.embedder.id, self.embedder.dimension)
        self.database = Database(dsn)
        began = time.monotonic()
        threads = [threading.Thread(target=self._write, args=(i,), daemon=True) for i in range(WRITERS)]
        try:
            for thread in threads:
                thread.start()
            for number in range(1, kills + 1):
                self._kill_once()
                if number % report_every == 0:
                    acknowledged = sum(writer.acknowledged for writer in self.writers)
                    print(f"{number} of {kills} kills, {acknowledged} acknowledged", flush=True)
            self._ending.set()
            for thread in threads:
                thread.join(60)
            self._count()
        finally:
            self._ending.set()
            self.database.close()
            self.server.stop()
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def _write(self, i: int) -> None:
        writer = self.writers[i]
        failed = 0  # the write that was sent in vain
        while not self._ending.is_set():
            writer.sent = writer.acknowledged + 1
            answered = Answered(
                writer.question(writer.sent), f"answer {writer.name} {writer.sent}", 1.0, "gold",
                key=f"{writer.name}:{writer.sent}", session=writer.name, turn=writer.sent,
            )  # fmt: skip
            self._busy[i] = True
            try:
                write(self.database, self.embedder, self.settings, answered)
                writer.acknowledged += 1
            except DatabaseError:
                writer.resent += failed != writer.sent
                failed = writer.sent
                self._ending.wait(0.02)
            finally:
                self._busy[i] = False

    def _kill_once(self) -> None:
        """Wait until every writer was acknowledged since the last kill, and a random moment more, then kill."""
        before = [writer.acknowledged for writer in self.writers]
        began = time.monotonic()
        while any(now.acknowledged <= then for now, then in zip(self.writers, before, strict=True)):
            if time.monotonic() - began > 120:
                raise AssertionError("writers make no progress for 120 s after a kill")
            time.sleep(0.005)
        if self.tally.kills:
            self.tally.recovery_s.append(time.monotonic() - self._killed_at)
        time.sleep(self.random.uniform(0.0, self.load_s))
        pid = self.server.status().pid
        assert pid is not None, "Postgres ran and was not killed by us"
        self.tally.in_flight += any(self._busy)
        kill_all(pid)
        self._killed_at = time.monotonic()
        self.tally.kills += 1
        self.server.ensure()

    def _count(self) -> None:
        with self.database.transaction() as connection:
            held = {str(question): int(count) for question, count in connection.execute(_HELD)}
            (half,) = connection.execute(_HALF_ROWS).fetchone() or (0,)
        self.tally.half_rows = int(half)
        self.tally.duplicates = sum(count - 1 for count in held.values())
        for writer in self.writers:
            there = [n for n in range(1, writer.sent + 1) if writer.question(n) in held]
            self.tally.acknowledged += writer.acknowledged
            self.tally.resent += writer.resent
            self.tally.lost += sum(n not in set(there) for n in range(1, writer.acknowledged + 1))
            self.tally.gaps += there != list(range(1, len(there) + 1))


def kill_all(pid: int) -> None:
    """The postmaster and every process of it, at once, none of them asked."""
    postmaster = psutil.Process(pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        with suppress(ProcessLookupError):  # a back end that had just ended
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.002)


def _lives(process: psutil.Process) -> bool:
    """A zombie does not: whoever has to reap it may take seconds."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--control", action="store_true", help="synchronous_commit=off: must lose some")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.25, help="seconds of load before a kill, at most")
    chosen = parser.parse_args(arguments)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of each pipeline that a kill broke off
    with tempfile.TemporaryDirectory(prefix="ruvllm-kills-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server's own user must enter it
        tally = Torture(folder / "state", CONTROL if chosen.control else None, chosen.seed, chosen.load).run(
            chosen.kills
        )
    print(("null control, synchronous_commit=off: " if chosen.control else "") + tally.as_text())
    if chosen.control:
        return 0 if tally.lost else 1
    return 1 if tally.lost or tally.duplicates or tally.half_rows or tally.gaps else 0


if __name__ == "__main__":
    sys.exit(main())
