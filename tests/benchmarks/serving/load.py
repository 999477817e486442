"""The gateway's own time under load, at five times its capacity, while its router is swapped; beside a bare FastAPI.

    python -m tests.benchmarks.serving.load --keep FOLDER --nodes 100000 --seconds 300
    python -m tests.benchmarks.serving.gateway_page FOLDER/results docs/gateway.md

An open loop (openloop.py), models scripted behind the real worker protocol (scripted.py), everything else as in use.
A part that has its result in FOLDER is not measured again (`--again` does), so a run that was stopped goes on. `cost`
alone, a minute long, shows what a request takes of the processors: run it before and after a change.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from ruvllm.database.pool import Database
from ruvllm.registry import ledger
from ruvllm.registry.ledger import NewRow
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings
from tests.benchmarks.memory import loading
from tests.benchmarks.memory.report import Cell, Report, conditions
from tests.benchmarks.memory.vectors import made
from tests.benchmarks.serving.hangups import HOW, hang_up, seconds_until_free
from tests.benchmarks.serving.openloop import Connections, Reply, on_schedule, percentiles
from tests.benchmarks.serving.peers import litellm
from tests.benchmarks.serving.peers import version as litellm_version
from tests.benchmarks.serving.place import bundles
from tests.ports import free_port

CHAT, ROUTE = "/v1/chat/completions", "/v1/route"
_COLUMNS = (
    "what",
    "requests/s",
    "N",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "refused",
    "failed",
    "CPU µs a request",
    "of the gateway",
)
_COMMAND = "python -m tests.benchmarks.serving.load --keep FOLDER"  # what differs from the defaults stands beside it
_OVERHEAD = "x-ruvllm-overhead-ms"
_BODIES = tuple(
    json.dumps({"model": "auto", "messages": [{"role": "user", "content": f"What is the capital of place {n}?"}]})
    .encode()
    for n in range(997)
)  # fmt: skip


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in processes)


@dataclass(frozen=True)
class Server:
    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Of the process and what it started, since they began."""
        return self.own_cpu_s() + _cpu_s(self.process.children(recursive=True))

    def own_cpu_s(self) -> float:
        return _cpu_s([self.process])


@dataclass(frozen=True)
class Run:
    replies: list[Reply]
    cpu_us: float  # a request, of the gateway and its models
    own_us: float  # of the gateway alone

    def row(
        self, what: str, rate: float, of: Callable[[Reply], float] = lambda reply: reply.seconds
    ) -> tuple[Cell, ...]:
        good = [of(reply) for reply in self.replies if reply.ok]
        refused = sum(reply.status in (429, 503) for reply in self.replies)
        failed = len(self.replies) - len(good) - refused
        figures = (round(value, 2) for value in percentiles(good))
        return (what, rate, len(self.replies), *figures, refused, failed, round(self.cpu_us), round(self.own_us))


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

    async def run() -> tuple[list[Reply], float, float]:
        to = Connections(host, int(port))
        await on_schedule(to, path, _BODIES, min(rate, 20), 1.0)
        before, own = server.cpu_s(), server.own_cpu_s()
        replies = await on_schedule(to, path, _BODIES, rate, seconds)
        to.close()
        return replies, server.cpu_s() - before, server.own_cpu_s() - own

    replies, cpu, own = asyncio.run(run())
    return Run(replies, *(spent / max(1, len(replies)) * 1e6 for spent in (cpu, own)))


def overhead_s(reply: Reply) -> float:
    """The gateway's own time: without the model's, and the wait for it."""
    return float(reply.headers.get(_OVERHEAD, "nan")) / 1000


@dataclass(frozen=True)
class Bench:
    """One database, and gateways on it."""

    dsn: str
    settings: Settings
    dim: int
    seconds: float

    def gateway(self, *more: str) -> AbstractContextManager[Server]:
        place = ("tests.benchmarks.serving.place", "--dsn", self.dsn, "--encoder", loading.ENCODER)
        return running([*place, "--dim", str(self.dim), "--state", str(self.settings.state_dir), *more])


@dataclass(frozen=True)
class Chosen:
    """Of the command line."""

    rate: float
    swaps: int
    service_ms: float
    litellm: Path | None = None  # an interpreter that has it


def cost(bench: Bench, report: Report, chosen: Chosen) -> None:
    """What a request takes of the processors, far from full, its outbox left alone and settled."""
    rows = []
    for what, more in (("write-back deferred", _DEFERRED), ("settled every second", ())):
        with bench.gateway(*more) as gateway:
            put_load(gateway, CHAT, 10.0, 3.0)  # caches, prepared statements
            rows += [put_load(gateway, path, 10.0, 12.0).row(f"{path}, {what}", 10.0) for path in (CHAT, ROUTE)]
    report.table("Cost of a request", _COLUMNS, rows, "Far from full; Postgres' own processes are not counted.")


def overhead(bench: Bench, report: Report, chosen: Chosen) -> None:
    """Models that take no time, write-back deferred: the gateway's own time beside the embedding."""
    rate = chosen.rate
    with running(["tests.benchmarks.serving.echo"]) as echo:
        floor = put_load(echo, CHAT, rate, min(bench.seconds, 30.0))
    with bench.gateway(*_DEFERRED) as gateway:
        chat = put_load(gateway, CHAT, rate, bench.seconds)
    rows = [floor.row("bare FastAPI echo", rate), chat.row("chat, whole request", rate),
            chat.row("chat, without the model", rate, overhead_s)]  # fmt: skip
    note = "Times from when each request was due. The encoder is the tests' hashing one, write-back is deferred."
    report.table(f"Overhead at {rate:g} requests/s", _COLUMNS, rows, note)
    _judge(report, f"overhead at {rate:g}/s beside the embedding", chat, (5, 20), overhead_s)


def everything(bench: Bench, report: Report, chosen: Chosen) -> None:
    """The real encoder, attention on, answers settled as they come; without attention for comparison."""
    rate, runs, attended = chosen.rate / 4, {}, {}
    plain, whole = _with_attention(bench)
    for what, bundle, seconds in (("without attention", plain, min(bench.seconds, 60.0)), ("", whole, bench.seconds)):
        with closing(Database(bench.dsn)) as database:
            _promote(database, what or "attention", *bundle)
        with bench.gateway("--real-encoder") as gateway:
            runs[what] = put_load(gateway, CHAT, rate, seconds)
            attended[what] = _attended(gateway.url)
    with closing(Database(bench.dsn)) as database:  # the other parts are without
        _promote(database, "plain", *plain)
    assert attended["without attention"][0] == 0, attended
    rows = [row for what, run in runs.items() for row in (
        run.row(f"chat, whole request {what}".rstrip(), rate),
        run.row(f"chat, without the model {what}".rstrip(), rate, overhead_s),
    )]  # fmt: skip
    count, mean_ms = attended[""]
    note = (
        "MiniLM embeds each question once; 997 questions in turn, of which the cache knows those of before. Attention, "
        f"with random weights of the usual shape, ordered {count:,} of {len(runs[''].replies) + 20:,} contexts in "
        f"{mean_ms:.1f} ms on average."
    )
    report.table(f"Everything on at {rate:g} requests/s", _COLUMNS, rows, note)
    _judge(report, f"everything on at {rate:g}/s", runs[""], (15, 40), overhead_s)


def _with_attention(bench: Bench) -> tuple[tuple[Path, str], tuple[Path, str]]:
    """A router as it is, and with an attention part: folder and digest of each."""
    from ruvllm.attention.layers import AttentionNetwork
    from ruvllm.attention.model import AttentionModel, to_bytes
    from ruvllm.attention.part import PASSED
    from ruvllm.attention.shape import Shape
    from ruvllm.learning.attention_part import pack

    (folder, sha256), *_ = bundles(bench.settings, loading.ENCODER)
    shape = Shape(bench.dim)
    arrays = AttentionNetwork(shape, 0, random_head=True).arrays()
    model = AttentionModel(shape, arrays, loading.ENCODER, "random", {PASSED: 1.0})
    whole = folder.with_name(f"{folder.name}-attention")
    return (folder, sha256), (whole, pack(folder, to_bytes(model), whole))


def _attended(url: str) -> tuple[int, float]:
    """How many contexts were ordered, and the mean milliseconds of it."""
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("ruvllm_attend_seconds_"))
    count, total = (float(found.get(f"ruvllm_attend_seconds_{name}", 0)) for name in ("count", "sum"))
    return int(count), total / max(1.0, count) * 1000


def peers(bench: Bench, report: Report, chosen: Chosen) -> None:
    """The same bare model behind ours, behind LiteLLM's proxy, and by itself."""
    seconds, rates = min(bench.seconds, 30.0), (chosen.rate / 4, chosen.rate)
    rows = []
    with running(["tests.benchmarks.serving.echo"]) as echo:
        rows += [put_load(echo, CHAT, rate, seconds).row("bare FastAPI echo", rate) for rate in rates]
        if chosen.litellm is not None:
            what = f"LiteLLM {litellm_version(chosen.litellm)} before the echo"
            with litellm(chosen.litellm, echo.url, bench.settings.state_dir / "litellm", free_port()) as (url, pid):
                proxy = Server(url, psutil.Process(pid))
                put_load(proxy, CHAT, rates[0], 5.0)
                rows += [put_load(proxy, CHAT, rate, seconds).row(what, rate) for rate in rates]
    with bench.gateway(*_DEFERRED) as gateway:
        put_load(gateway, CHAT, rates[0], 5.0)
        rows += [put_load(gateway, CHAT, rate, seconds).row("ours: routed, with memory", rate) for rate in rates]
    note = "Whole requests. LiteLLM passes each on by HTTP; ours embeds (hashing), searches, routes, asks its worker."
    if chosen.litellm is None:
        note += " LiteLLM: not measured; --litellm PYTHON names an environment that has litellm[proxy]."
    report.table("Beside what users have otherwise", _COLUMNS, rows, note)


def route(bench: Bench, report: Report, chosen: Chosen) -> None:
    """The decision alone, with the real encoder; for less than 997 requests no question comes twice."""
    rate = chosen.rate / 4
    with bench.gateway("--real-encoder", *_DEFERRED) as gateway:
        first = put_load(gateway, ROUTE, rate, min(bench.seconds, (len(_BODIES) - 30) / rate))
        again = put_load(gateway, ROUTE, rate, min(bench.seconds, 20.0))
    rows = [first.row("route, question not seen before", rate), again.row("route, embedding known", rate)]
    report.table(f"Decision alone at {rate:g} requests/s", _COLUMNS, rows, "The difference is the embedding.")
    _judge(report, "decision alone, embedding included", first, (10, 30), _whole_s)


def overload(bench: Bench, report: Report, chosen: Chosen) -> None:
    """At capacity, at five times that, and after: models take `service_ms` and answer one at a time."""
    service_ms, seconds = chosen.service_ms, min(bench.seconds, 60.0)
    capacity = 1000 / service_ms  # of one model: the cold-start router shares requests out, so it is a lower bound
    with bench.gateway("--service-ms", str(service_ms)) as gateway:
        at = put_load(gateway, CHAT, capacity, seconds)
        over = put_load(gateway, CHAT, 5 * capacity, seconds)
        most = gateway.process.memory_info().rss
        after = put_load(gateway, CHAT, capacity / 2, 20.0)
    rows = [at.row("at capacity", capacity), over.row("at five times", 5 * capacity),
            after.row("after", capacity / 2)]  # fmt: skip
    note = f"One answer at a time a model. The gateway held {most / 2**20:.0f} MiB at the end of the overload."
    report.table(f"Overload, models of {service_ms:g} ms", _COLUMNS, rows, note)
    goodput = sum(reply.ok for reply in over.replies) / max(1, sum(reply.ok for reply in at.replies))
    refusals = [reply.seconds for reply in over.replies if reply.status in (429, 503)]
    slowest, p99 = max(refusals, default=math.nan) * 1000, percentiles(refusals)[2]
    said = f"{goodput:.0%}, refusals p99 {p99:.1f} ms, longest {slowest:.1f} ms"
    report.target(
        "at five times capacity", "goodput >= 90 %, refused within 50 ms", said, goodput >= 0.9 and slowest <= 50
    )
    _judge_recovery(report, at, after)


def _judge_recovery(report: Report, at: Run, after: Run) -> None:
    """Normal is what was at capacity; the second half of the run after the overload counts, from ten seconds on."""
    late = [reply for reply in after.replies if reply.due_s >= 10]
    p50, normal = (percentiles([reply.seconds for reply in which if reply.ok])[0] for which in (late, at.replies))
    bad = sum(not reply.ok for reply in late)
    met = not bad and p50 <= normal if late else None
    report.target("ten seconds after the overload", "none refused, p50 as before", f"{bad}, {p50:.1f} ms", met)


def swap(bench: Bench, report: Report, chosen: Chosen) -> None:
    """The router is swapped through the ledger while requests come; none may fail or mix versions."""
    made, done = itertools.cycle(bundles(bench.settings, loading.ENCODER)), threading.Event()

    def promote() -> None:
        with closing(Database(bench.dsn)) as database:
            for n in range(chosen.swaps):
                _promote(database, str(n), *next(made))
                if done.wait(2.0):  # the gateway looks every second
                    return

    with bench.gateway(*_DEFERRED) as gateway:
        base = _warm(gateway, chosen.rate, _BASE_S)
        thread = threading.Thread(target=promote)
        thread.start()
        swapped = put_load(gateway, CHAT, chosen.rate, 2.0 * chosen.swaps)
        done.set()
        thread.join()
    _judge_swap(report, f"{chosen.swaps} swaps through the ledger", chosen.rate, base, swapped)


def _promote(database: Database, version: str, folder: Path, sha256: str) -> None:
    with database.transaction() as connection:
        row = NewRow("promote", version, sha256, str(folder), "benchmark")
        ledger.append(connection, ledger.current(connection), row)


def local_swap(bench: Bench, report: Report, chosen: Chosen) -> None:
    """The router is swapped through the cache on disk, fifty times for each one through the ledger."""
    swaps, seconds = 50 * chosen.swaps, max(10.0, min(bench.seconds, 100.0))
    with bench.gateway(*_DEFERRED) as gateway:
        base = _warm(gateway, chosen.rate, _BASE_S)
    with bench.gateway(*_DEFERRED, "--swap-s", str(seconds / swaps)) as gateway:
        swapped = _warm(gateway, chosen.rate, seconds)
    _judge_swap(report, f"about {swaps:,} swaps through the local cache", chosen.rate, base, swapped)


def _warm(server: Server, rate: float, seconds: float) -> Run:
    """After ten seconds that are left out: what a cold gateway takes would hide what a swap does."""
    put_load(server, CHAT, rate, 10.0)
    return put_load(server, CHAT, rate, seconds)


def _judge_swap(report: Report, what: str, rate: float, base: Run, swapped: Run) -> None:
    """A mixed version would be an answer whose header names none of the routers."""
    rows = [base.row("no swap", rate), swapped.row(what, rate)]
    report.table(
        f"Hot swap, {what}", _COLUMNS, rows, "Each router is verified by its golden vectors before it decides."
    )
    seen = {reply.headers.get("x-ruvllm-router-version", "") for reply in swapped.replies if reply.ok}
    failed = sum(not reply.ok for reply in swapped.replies)
    longer = percentiles([r.seconds for r in swapped.replies])[2] - percentiles([r.seconds for r in base.replies])[2]
    said = f"{failed} of {len(swapped.replies)} failed, {len(seen)} versions answered, p99 {longer:+.1f} ms"
    met = failed == 0 and len(seen) >= 2 and longer <= 5
    report.target(what, "none failed, both versions answered, p99 <= 5 ms longer", said, met)


def disconnects(bench: Bench, report: Report, chosen: Chosen) -> None:
    """Clients that hang up while the model works: the slots are free again at once, and nothing stays open."""
    with bench.gateway("--service-ms", "20") as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        put_load(gateway, CHAT, 5.0, 2.0)  # it waits until the gateway listens
        asyncio.run(hang_up(host, int(port), _HANGUPS // 20, _AT_ONCE))
        seconds_until_free(gateway.url)
        before = gateway.process.num_fds(), gateway.process.memory_info().rss / 2**20
        asyncio.run(hang_up(host, int(port), _HANGUPS, _AT_ONCE))
        free_s = seconds_until_free(gateway.url)
        after = gateway.process.num_fds(), gateway.process.memory_info().rss / 2**20
        good = put_load(gateway, CHAT, 5.0, 10.0)
    failed = sum(not reply.ok for reply in good.replies)
    report.table(
        f"{_HANGUPS:,} clients that hang up",
        ("what", "before", "after"),
        [("open descriptors", before[0], after[0]), ("memory, MiB", round(before[1]), round(after[1])),
         ("seconds until no request is left", "-", round(free_s, 2)),
         ("of 50 requests afterwards failed", "-", failed)],
        f"{_AT_ONCE} at a time, a third each: {', '.join(HOW)}; a streamed answer of 20 ms. `before` is after"
        f" {_HANGUPS // 20:,} others.",
    )  # fmt: skip
    met = free_s <= 1.0 and after[0] <= before[0] + _SPARE and not failed
    said = f"{free_s:.2f} s, {after[0] - before[0]:+d} descriptors, {failed} failed"
    report.target("clients that hang up", f"free within 1 s, at most {_SPARE} descriptors more, none failed", said, met)


def _whole_s(reply: Reply) -> float:
    return reply.seconds


def _judge(report: Report, what: str, run: Run, most_ms: tuple[int, int], of: Callable[[Reply], float]) -> None:
    p50, _, p99 = percentiles([of(reply) for reply in run.replies if reply.ok])
    failed = sum(not reply.ok for reply in run.replies)
    wanted = f"p50 <= {most_ms[0]} ms, p99 <= {most_ms[1]} ms, no error"
    met = p50 <= most_ms[0] and p99 <= most_ms[1] and not failed
    report.target(what, wanted, f"{p50:.2f} ms, {p99:.2f} ms, {failed}", met)


_HANGUPS, _AT_ONCE, _SPARE = 10_000, 8, 4  # clients; pools open a connection now and then
_BASE_S = 30.0  # of load without a swap
_DEFERRED = ("--settle-s", "100000")  # at the start, and never again
PARTS: dict[str, Callable[[Bench, Report, Chosen], None]] = {
    "cost": cost, "overhead": overhead, "everything": everything, "route": route, "overload": overload,
    "local-swap": local_swap, "swap": swap, "disconnects": disconnects, "peers": peers,
}  # fmt: skip


def estimate_s(part: str, seconds: float, swaps: int) -> float:
    """About how long a part takes, with ten seconds for each gateway's start."""
    load = {
        "cost": 54, "overhead": min(seconds, 30) + seconds, "everything": seconds + 60, "route": min(seconds, 38) + 20,
        "overload": 2 * min(seconds, 60) + 20, "local-swap": 50 + min(seconds, 100), "swap": 40 + 2 * swaps,
        "disconnects": 180, "peers": 220,
    }  # fmt: skip
    return float(load[part]) + (20 if part in ("cost", "everything", "local-swap") else 10)


def measure(parts: Sequence[str], keep: Path, nodes: int, seconds: float, chosen: Chosen) -> None:
    """Each of `parts` with a result of its own in `keep`."""
    corpus = made(nodes, 384, 100, keep)
    with loading.server(keep, corpus) as postgres:
        dsn = loading.fill(postgres, corpus, 2).dsn
        bench = Bench(dsn, load_settings({}, state_dir=keep / "state", database_url=dsn), corpus.dim, seconds)
        for part in parts:
            report = Report(
                f"gateway-{part}", keep / "part", conditions(nodes=nodes, seconds=seconds, command=_COMMAND)
            )
            PARTS[part](bench, report, chosen)
            _keep(report, keep / "results")
            print((keep / "results" / f"{report.name}.md").read_text(), flush=True)


def _keep(report: Report, results: Path) -> None:
    """A part is a result once it is whole."""
    results.mkdir(exist_ok=True)
    for kind in ("md", "json"):
        (report.folder / f"{report.name}.{kind}").replace(results / f"{report.name}.{kind}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--keep", type=Path, required=True, help="folder for the database and the results")
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--swaps", type=int, default=20, help="through the ledger; fifty times as many locally")
    parser.add_argument("--service-ms", type=float, default=50.0, help="of the overload's models")
    parser.add_argument("--litellm", type=Path, help="interpreter of an environment that has litellm[proxy]")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--again", action="store_true", help="measure parts that have a result, too")
    given = parser.parse_args(arguments)
    given.keep.mkdir(parents=True, exist_ok=True)
    given.keep.chmod(0o755)  # the server's own user must enter it
    done = () if given.again else tuple(path.stem for path in (given.keep / "results").glob("gateway-*.json"))
    parts = [part for part in given.only.split(",") if f"gateway-{part}" not in done]
    minutes = sum(estimate_s(part, given.seconds, given.swaps) for part in parts) / 60
    print(f"to measure: {', '.join(parts) or 'nothing'}; about {minutes:.0f} minutes beside the database", flush=True)
    if parts:
        chosen = Chosen(given.rate, given.swaps, given.service_ms, given.litellm)
        measure(parts, given.keep, given.nodes, given.seconds, chosen)


if __name__ == "__main__":
    main()
