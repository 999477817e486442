"""kill -9 of the gateway in the middle of its write-backs, again and again: what it acknowledged must be there, once.

    python -m tests.benchmarks.serving.kills --kills 1000
    python -m tests.benchmarks.serving.kills --kills 20 --control    # the null control: this one must lose some

Clients ask over HTTP and rate what they got; each sends its next question only when both were acknowledged, and the
same again, under the same request id, where no answer came. So of each client 1..n must be stored and written back,
n the acknowledged. The control acknowledges and commits later. Gateways are forked from one that has imported all.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from ruvllm.answering.interactions import Interactions
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.fake import FakeModel
from ruvllm.memory.store import Memory
from ruvllm.serving.__main__ import listen
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings
from tests.benchmarks.serving.place import config, embedder_of, service

CLIENTS = 4
LATE_S = 0.15  # that the control commits after it has acknowledged
_NAME = re.compile(r"under (W\d+ \d+)\?(?!.*under W\d+ \d+\?)", re.DOTALL)
_PATIENCE_S = 60.0

_HELD = """
    SELECT t.metadata ->> 'question', count(*) FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    WHERE n.archived_at IS NULL AND t.source = 'qa_pair' GROUP BY 1
"""
_STORED = "SELECT request_id, count(*) FROM serving.interactions GROUP BY 1"
_LEFT = "SELECT count(*) FROM serving.outbox WHERE done_at IS NULL OR outcome = 'failed'"


@dataclass
class Client:
    """`acknowledged` questions were answered and rated, by the client's own count."""

    name: str
    acknowledged: int = 0
    sent: int = 0
    resent: int = 0

    def question(self, number: int) -> str:
        return f"What is stored under {self.name} {number}?"

    def request_id(self, number: int) -> str:
        return f"{self.name}-{number}"


@dataclass
class Tally:
    """`lost_answers` and `lost_writes` were acknowledged and are not there; `left` outbox rows never came to an end."""

    kills: int = 0
    acknowledged: int = 0
    resent: int = 0
    lost_answers: int = 0
    lost_writes: int = 0
    duplicates: int = 0
    left: int = 0
    in_flight: int = 0  # kills that hit at least one request under way
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.lost_answers or self.lost_writes or self.duplicates or self.left)

    def as_text(self) -> str:
        bound = f"; rule of three: loss a kill <= {3 / self.kills:.4f} at 95 %" if self.kills and self.clean else ""
        return (
            f"{self.kills} kills in {self.seconds:.0f} s ({self.in_flight} with a request under way):"
            f" {self.acknowledged} answers and ratings acknowledged, {self.resent} sent again,"
            f" {self.lost_answers} answers and {self.lost_writes} write-backs lost, {self.duplicates} duplicates,"
            f" {self.left} left undone{bound}"
        )


class Torture:
    """Gateways on one database, their clients, and the one who kills."""

    def __init__(self, dsn: str, folder: Path, late: bool = False, seed: int = 1, load_s: float = 0.1) -> None:
        self._dsn, self._late = dsn, late
        self._settings = _settings(dsn, folder)
        self._settings.run_dir.mkdir(parents=True, exist_ok=True)
        self._random, self._load_s = random.Random(seed), load_s
        self.clients = [Client(f"W{i}") for i in range(CLIENTS)]
        self.tally = Tally()
        self._busy = [False] * CLIENTS
        self._ending = threading.Event()
        self._progress = threading.Condition()

    def run(self, kills: int) -> Tally:
        """`kills` times: load, kill, another gateway; then settle what is left, and count."""
        began = time.monotonic()
        command = [sys.executable, "-m", "tests.benchmarks.serving.kills", "--fork", self._dsn]
        command += [str(self._settings.state_dir), "--late"] if self._late else [str(self._settings.state_dir)]
        forker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT)
        assert forker.stdout is not None
        self._url = forker.stdout.readline().strip()
        threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(CLIENTS)]
        try:
            pid = _start(forker)
            for thread in threads:
                thread.start()
            for _ in range(kills):
                pid = self._kill(forker, pid)
            self._wait_for_progress()
        finally:
            self._ending.set()
            for thread in threads:
                thread.join(_PATIENCE_S)
            _end(forker, pid)
        self._count()
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def _ask(self, i: int) -> None:
        client = self.clients[i]
        with httpx.Client(base_url=self._url, timeout=10, trust_env=False) as http:
            while not self._ending.is_set():
                client.sent = client.acknowledged + 1
                self._busy[i] = True
                done = self._asked_and_rated(http, client)
                self._busy[i] = False
                with self._progress:
                    client.acknowledged += done
                    client.resent += not done
                    self._progress.notify_all()
                if not done:
                    self._ending.wait(0.01)

    def _asked_and_rated(self, http: httpx.Client, client: Client) -> bool:
        request_id = client.request_id(client.sent)
        question = {"model": "auto", "messages": [{"role": "user", "content": client.question(client.sent)}]}
        rating = {"request_id": request_id, "rating": 5}
        try:
            answer = http.post("/v1/chat/completions", json=question, headers={"x-request-id": request_id})
            return answer.is_success and http.post("/v1/feedback", json=rating).is_success
        except httpx.TransportError:
            return False

    def _kill(self, forker: subprocess.Popen[str], pid: int) -> int:
        """Once every client was acknowledged since the last kill, and a random moment more; the next gateway's pid."""
        self._wait_for_progress()
        time.sleep(self._random.uniform(0.0, self._load_s))
        self.tally.in_flight += any(self._busy)
        os.kill(pid, signal.SIGKILL)
        self.tally.kills += 1
        return _start(forker)

    def _wait_for_progress(self) -> None:
        before = [client.acknowledged for client in self.clients]

        def all_moved() -> bool:
            return all(now.acknowledged > then for now, then in zip(self.clients, before, strict=True))

        with self._progress:
            if not self._progress.wait_for(all_moved, _PATIENCE_S):
                raise AssertionError(f"clients make no progress for {_PATIENCE_S:.0f} s after a kill")

    def _count(self) -> None:
        embedder = EmbeddingAdapter(HashingEncoder())
        database = Database(self._dsn)
        Interactions(database).settle(Memory(database, embedder, self._settings), 1_000_000)
        with database.transaction() as connection:
            held = {str(question): int(count) for question, count in connection.execute(_HELD)}
            stored = {str(request): int(count) for request, count in connection.execute(_STORED)}
            (left,) = connection.execute(_LEFT).fetchone() or (0,)
        database.close()
        self.tally.left = int(left)
        self.tally.duplicates = sum(count - 1 for count in (*held.values(), *stored.values()))
        for client in self.clients:
            numbers = range(1, client.acknowledged + 1)
            self.tally.acknowledged += client.acknowledged
            self.tally.resent += client.resent
            self.tally.lost_answers += sum(client.request_id(n) not in stored for n in numbers)
            self.tally.lost_writes += sum(client.question(n) not in held for n in numbers)


def _settings(dsn: str, folder: Path) -> Settings:
    return load_settings({}, state_dir=folder, database_url=dsn, replica=False, access="open")


def _start(forker: subprocess.Popen[str]) -> int:
    assert forker.stdin is not None
    assert forker.stdout is not None
    forker.stdin.write("start\n")
    forker.stdin.flush()
    return int(forker.stdout.readline())


def _end(forker: subprocess.Popen[str], pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert forker.stdin is not None
    assert forker.stdout is not None
    forker.stdin.close()
    forker.wait(_PATIENCE_S)
    forker.stdout.close()


# --- the process that forks gateways ----------------------------------------------------------------------------------


def fork_gateways(dsn: str, folder: Path, late: bool) -> None:
    """One gateway at a time, on one socket, for each line that comes; it is gone before the next is begun.

    It is put together once and started in every fork: a second of work that each start would take again.
    """
    if late:
        _acknowledge_early()
    settings, database = _settings(dsn, folder), Database(dsn)
    embedder = embedder_of("test-encoder", 384, settings)
    of = config(settings, service(settings, database, embedder, lambda tier: FakeModel(_answer)))
    of.load()
    database.close()  # a fork opens its own connections
    with listen("127.0.0.1", 0) as door:
        print(f"http://127.0.0.1:{door.getsockname()[1]}", flush=True)
        child = 0
        for _ in sys.stdin:
            if child:
                os.waitpid(child, 0)
            child = os.fork()
            if not child:
                uvicorn.Server(of).run(sockets=[door])
                os._exit(0)
            print(child, flush=True)


def _answer(prompt: str) -> str:
    found = _NAME.search(prompt)
    return f"stored {found[1]}" if found else "unknown"


def _acknowledge_early() -> None:
    """The control: what must be committed before the answer is committed some time after it."""
    record = Interactions.record

    def record_later(self: Interactions, *arguments: object) -> None:
        threading.Timer(LATE_S, record, (self, *arguments)).start()

    Interactions.record = record_later  # type: ignore[method-assign,assignment]
    Interactions.feedback = lambda *_: None  # type: ignore[method-assign,assignment]


def main(arguments: Sequence[str] | None = None) -> int:
    from ruvllm.database import EmbeddedPostgres

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--control", action="store_true", help="acknowledge first, commit later: must lose some")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.25, help="seconds of load before a kill, at most")
    parser.add_argument("--fork", nargs=2, metavar=("DSN", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--late", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.fork:
        fork_gateways(chosen.fork[0], Path(chosen.fork[1]), chosen.late)
        return 0
    with tempfile.TemporaryDirectory(prefix="ruvllm-kills-") as name:
        Path(name).chmod(0o755)  # the server's own user must enter it
        server = EmbeddedPostgres(load_settings({}, state_dir=Path(name) / "postgres"))
        dsn = server.ensure()
        try:
            upgrade(dsn, "test-encoder", 384)
            tally = Torture(dsn, Path(name) / "state", chosen.control, chosen.seed, chosen.load).run(chosen.kills)
        finally:
            server.stop()
    print(("null control, acknowledged before the commit: " if chosen.control else "") + tally.as_text())
    return int(tally.clean) if chosen.control else int(not tally.clean)


if __name__ == "__main__":
    sys.exit(main())
