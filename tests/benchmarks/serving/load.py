"""The gateway's own time under load, at five times its capacity, while its router is swapped; beside a bare FastAPI.

    python -m tests.benchmarks.serving.load --keep FOLDER --nodes 100000 --seconds 300
    python -m tests.benchmarks.memory.report FOLDER/results docs/gateway.md

An open loop (openloop.py), models scripted behind the real worker protocol (scripted.py), everything else as in use.
The encoder is the tests' hashing one: a real one's time comes on top of these figures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from ruvllm.database.pool import Database
from ruvllm.registry import ledger
from ruvllm.registry.ledger import NewRow
from ruvllm.router.fake import write_random_bundle
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings
from tests.benchmarks.memory import loading
from tests.benchmarks.memory.report import Cell, Report, conditions
from tests.benchmarks.memory.vectors import made
from tests.benchmarks.serving.openloop import Connections, Reply, on_schedule, percentiles
from tests.benchmarks.serving.place import ladder

CHAT, ROUTE = "/v1/chat/completions", "/v1/route"
_COLUMNS = ("what", "requests/s", "N", "p50 ms", "p90 ms", "p99 ms", "refused", "failed", "CPU µs a request")
_OVERHEAD = "x-ruvllm-overhead-ms"
_BODIES = tuple(
    json.dumps({"model": "auto", "messages": [{"role": "user", "content": f"What is the capital of place {n}?"}]})
    .encode()
    for n in range(997)
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Of the process and what it started, since they began."""
        every = [self.process, *self.process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in every)


@dataclass(frozen=True)
class Run:
    replies: list[Reply]
    cpu_us: float  # a request

    def row(
        self, what: str, rate: float, of: Callable[[Reply], float] = lambda reply: reply.seconds
    ) -> tuple[Cell, ...]:
        good = [of(reply) for reply in self.replies if reply.ok]
        refused = sum(reply.status in (429, 503) for reply in self.replies)
        failed = len(self.replies) - len(good) - refused
        figures = (round(value, 2) for value in percentiles(good))
        return (what, rate, len(self.replies), *figures, refused, failed, round(self.cpu_us))


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[Server]:
    """A server that prints its address; ended at the end."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT)
    assert process.stdout is not None
    try:
        yield Server(process.stdout.readline().strip(), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def put_load(server: Server, path: str, rate: float, seconds: float) -> Run:
    """Open loop; the first second warms up and is left out."""
    host, port = server.url.removeprefix("http://").split(":")

    async def run() -> tuple[list[Reply], float]:
        to = Connections(host, int(port))
        await on_schedule(to, path, _BODIES, min(rate, 20), 1.0)
        before = server.cpu_s()
        replies = await on_schedule(to, path, _BODIES, rate, seconds)
        to.close()
        return replies, server.cpu_s() - before

    replies, cpu = asyncio.run(run())
    return Run(replies, cpu / max(1, len(replies)) * 1e6)


def overhead_s(reply: Reply) -> float:
    """The gateway's own time: without the model's, and the wait for it."""
    return float(reply.headers.get(_OVERHEAD, "nan")) / 1000


class Bench:
    """One database, and gateways on it."""

    def __init__(self, dsn: str, settings: Settings, report: Report, encoder: str, dim: int, seconds: float) -> None:
        self.dsn, self.settings, self.report, self.seconds = dsn, settings, report, seconds
        self.place = ("tests.benchmarks.serving.place", "--dsn", dsn, "--encoder", encoder, "--dim", str(dim),
                       "--state", str(settings.state_dir))  # fmt: skip

    def overhead(self, rate: float) -> None:
        """Everything on, models that take no time; the whole request and the gateway's own count of it."""
        with running(["tests.benchmarks.serving.echo"]) as echo:
            floor = put_load(echo, CHAT, rate, min(self.seconds, 30.0))
        with running(self.place) as gateway:
            chat = put_load(gateway, CHAT, rate, self.seconds)
            route = put_load(gateway, ROUTE, rate, min(self.seconds, 60.0))
        rows = [floor.row("bare FastAPI echo", rate), chat.row("chat, whole request", rate),
                chat.row("chat, without the model", rate, overhead_s), route.row("route alone", rate)]  # fmt: skip
        self.report.table(f"Overhead at {rate:g} requests/s", _COLUMNS, rows, "Times from when each request was due.")
        p50, _, p99 = percentiles([overhead_s(reply) for reply in chat.replies if reply.ok])
        failed = sum(not reply.ok for reply in chat.replies)
        self.report.target(
            f"overhead at {rate:g}/s", "p50 <= 5 ms, p99 <= 20 ms, no error", f"{p50:.2f} ms, {p99:.2f} ms, {failed}",
            p50 <= 5 and p99 <= 20 and not failed,
        )  # fmt: skip

    def overload(self, service_ms: float) -> None:
        """At capacity, at five times that, and after: models take `service_ms` and answer one at a time."""
        capacity = 1000 / service_ms  # of one model: the cold-start router shares requests out, so it is a lower bound
        seconds = min(self.seconds, 60.0)
        with running([*self.place, "--service-ms", str(service_ms)]) as gateway:
            at = put_load(gateway, CHAT, capacity, seconds)
            over = put_load(gateway, CHAT, 5 * capacity, seconds)
            after = put_load(gateway, CHAT, capacity / 2, 10.0)
        rows = [at.row("at capacity", capacity), over.row("at five times", 5 * capacity),
                after.row("after", capacity / 2)]  # fmt: skip
        self.report.table(f"Overload, models of {service_ms:g} ms", _COLUMNS, rows, "One answer at a time a model.")
        goodput = sum(reply.ok for reply in over.replies) / max(1, sum(reply.ok for reply in at.replies))
        refusals = [reply.seconds for reply in over.replies if reply.status in (429, 503)]
        slowest = max(refusals, default=float("nan")) * 1000
        p99 = percentiles(refusals)[2]
        self.report.target(
            "at five times capacity", "goodput >= 90 %, refused within 50 ms",
            f"{goodput:.0%}, refusals p99 {p99:.1f} ms, longest {slowest:.1f} ms", goodput >= 0.9 and slowest <= 50,
        )  # fmt: skip

    def swap(self, rate: float, swaps: int) -> None:
        """The router is swapped through the local cache's ledger while requests come; none may fail or mix versions."""
        said, met = _promote_while(self, rate, swaps)
        self.report.target("hot swap", "no failed request", said, met)


def _promote_while(bench: Bench, rate: float, swaps: int) -> tuple[str, bool]:
    """Promotes `swaps` times, as often as the gateway looks at the ledger, under load."""
    database, folders = Database(bench.dsn), itertools.cycle(_bundles(bench.settings))
    done = threading.Event()

    def promote() -> None:
        for n in range(swaps):
            folder, sha256 = next(folders)
            with database.transaction() as connection:
                row = NewRow("promote", f"{n}", sha256, str(folder), "benchmark")
                ledger.append(connection, ledger.current(connection), row)
            if done.wait(2.0):  # the gateway looks every 1.5 s
                return

    with running(bench.place) as gateway:
        base = put_load(gateway, CHAT, rate, 10.0)
        thread = threading.Thread(target=promote)
        thread.start()
        swapped = put_load(gateway, CHAT, rate, 2.0 * swaps)
        done.set()
        thread.join()
    database.close()
    rows = [base.row("no swap", rate), swapped.row(f"{swaps} swaps", rate)]
    bench.report.table("Hot swap through the ledger", _COLUMNS, rows, "Promotions every 2 s; each bundle is verified.")
    seen = {reply.headers.get("x-ruvllm-router-version", "") for reply in swapped.replies if reply.ok}
    failed = sum(not reply.ok for reply in swapped.replies)
    return f"{failed} of {len(swapped.replies)} failed, {len(seen)} versions answered", failed == 0 and len(seen) >= 2


def _bundles(settings: Settings) -> list[tuple[Path, str]]:
    names = tuple(ladder().names) + ("",) * (4 - len(ladder().names))
    found = []
    for seed in range(2):
        folder = settings.state_dir / "bundles" / uuid.uuid4().hex  # a bundle is never overwritten
        sha256 = write_random_bundle(
            folder, version=f"router-{seed}", tiers=names, seed=seed, encoder_id=loading.ENCODER
        )
        found.append((folder, sha256))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--keep", type=Path, required=True, help="folder for the database and the results")
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--service-ms", type=float, default=50.0, help="of the overload's models")
    parser.add_argument("--only", default="overhead,overload,swap")
    chosen = parser.parse_args(arguments)
    chosen.keep.mkdir(parents=True, exist_ok=True)
    chosen.keep.chmod(0o755)  # the server's own user must enter it
    corpus = made(chosen.nodes, 384, 100, chosen.keep)
    report = Report("gateway", chosen.keep / "results", conditions(nodes=chosen.nodes, seconds=chosen.seconds))
    with loading.server(chosen.keep, corpus) as postgres:
        dsn = loading.fill(postgres, corpus, 2).dsn
        settings = load_settings({}, state_dir=chosen.keep / "state", database_url=dsn)
        bench = Bench(dsn, settings, report, loading.ENCODER, corpus.dim, chosen.seconds)
        runs = {"overhead": lambda: bench.overhead(chosen.rate), "overload": lambda: bench.overload(chosen.service_ms),
                "swap": lambda: bench.swap(chosen.rate, chosen.swaps)}  # fmt: skip
        for name in chosen.only.split(","):
            runs[name]()
    print((chosen.keep / "results" / "gateway.md").read_text())


if __name__ == "__main__":
    main()
