"""docs/scale.md from docs/scale.json: how memory goes past one machine, and what was measured. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ruvllm.database.standby import TIMES
from tests.benchmarks.memory import scale_arithmetic as arithmetic
from tests.benchmarks.memory.billion import WARM_EF, WARM_M, Figures, K, Search

Cell = str | int | float
_HEAD = """# Memory past one machine

Made by `python -m tests.benchmarks.memory.scale page` from `docs/scale.json`; no figure is typed by hand.

## Shards

A shard is a plain Postgres server with our schema; a coordinator reaches all of them through `postgres_fdw`. A tenant
lies on one shard, by its name (`ruvllm.memory.shards.route`), and there everything works as on one machine, walks
included. Only a tenant that is too big for one shard is spread, by the hash of a node's content: its searches ask every
shard at once, each sorts and cuts by its own index, and edges stay within a shard.

    shards.toml    coordinator = "postgresql://…"
                   [shards]
                   a = "postgresql://…"     # the order is for ever: it numbers the ids; a new shard comes last
                   b = "postgresql://…"

A search is refused (`ShardPlanError`) where a shard would be sent no `ORDER BY … LIMIT`, and fails where a shard is out
of reach: a part of the answer is never handed out as the whole. Row-level security holds on the shards: the connection
of each foreign server carries its tenant. A new shard takes 1/n of the keys and moves no other; to move a tenant, stop
its writes, dump its rows (`ruvllm memory export`), import them where it goes, delete them where it was.
Beside what is measured here, the coordinator must be PostgreSQL 18 (shards: 15 and newer).
"""
_STANDBY = """## Standbys

Each server, the coordinator too, can be three members under Patroni: a primary, a synchronous standby, and one more
that serves reads and stands in (`ruvllm/database/standby.py`; on machines of their own, with etcd: `infra/ha/`).
Clients name all members (`target_session_attrs=read-write`; `prefer-standby` for reads). A commit is acknowledged when
it is on the standby's disk too. With no standby left the primary goes on alone, and nobody is promoted in its place
until one is back: a second failure then costs availability, not writes. (With Raft inside the members, as on one
machine, two dead of three leave no majority, and the third refuses writes.) A dead server is replaced at once; a
machine that vanishes, when its key has run out ({ttl} s, the least that Patroni allows).
"""
_TIERS = """## Tiers

Hot: an HNSW index of halves, in memory. Warm: partitions with an HNSW index of one bit a dimension (M {m},
efConstruction {ef}, Hamming distance); what it finds is ranked again by the halves, which stay on disk. Cold: archive
partitions without an index, read whole or brought back. A search asks every hot and warm partition, so its CPU time is
their sum; the partitions of different machines are asked at the same time.
"""


def page(figures: Mapping[str, Any]) -> str:
    parts = [_HEAD.strip(), _shards(figures.get("shards", {}))]
    parts += [_STANDBY.format(ttl=TIMES["ttl"]).strip(), _failovers(figures.get("failovers", {}))]
    parts += [_TIERS.format(m=WARM_M, ef=WARM_EF).strip(), *_tiers(figures.get("billion", {}))]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    body = "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n{body}"


def _cell(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _shards(runs: Mapping[str, Any]) -> str:
    if not runs:
        return "Not measured yet."
    rows = [_shard_row(runs[size]) for size in sorted(runs, key=int)]
    columns = ("nodes", "shards", "d", "LIMIT sent", "exact = one server", f"recall@{K}", "p50 ms", "p99 ms",
               "CPU ms a query and shard", "coordinator CPU ms", "one shard alone p50 ms", "build CPU s a shard",
               "database bytes a node (empty: 8 MB)")  # fmt: skip
    note = (
        "efSearch is the band's of all nodes, 32 below 100,000 and 64 from there on, so rows of different bands differ"
        " by it too; the made clusters are easy, so recall here says nothing of real ones. The exact answers are of the"
        " first 50 queries. CPU time of a busy machine reads too high. "
        "CPU time of a shard is what a machine of its own would spend on a query. Every shard is asked by every query"
        " of a spread tenant, so more shards hold more nodes at that cost, and do not answer more queries; tenants that"
        " lie on one shard each do gain with every shard. The coordinator's time grows with shards × k. Wall-clock is"
        f" of a machine whose cores all servers share: it says nothing of a cluster. {_conditions(runs)}"
    )
    return table(columns, rows) + "\n\n" + note


def _shard_row(run: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        run["nodes"], run["shards"], run["dimension"], "yes" if run["pushed"] else "**no**",
        f"{100 * run['exact_equal']:.1f} %", f"{run['recall']:.4f}", run["p50_ms"], run["p99_ms"],
        float(np.mean(run["shard_cpu_ms"])), run["coordinator_cpu_ms"], run["one_shard_p50_ms"],
        float(np.mean(run["build_cpu_s"])), sum(run["bytes"]) / run["nodes"],
    )  # fmt: skip


def _failovers(runs: Mapping[str, Any]) -> str:
    if not runs:
        return "Not measured yet."
    done = runs["all"]["runs"]
    rows = [_failover_row(kind, [each for each in done if each["kind"] == kind]) for kind in ("server", "machine")]
    columns = ("killed with -9 under two writers", "N", "writes go on after: median s", "90 % s", "most s",
               "acknowledged", "lost", "another promoted")  # fmt: skip
    note = "Goal: none lost, writes go on within 30 s. " + _conditions(runs)
    return table(columns, [row for row in rows if row]) + "\n\n" + note


def _failover_row(kind: str, done: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    if not done:
        return ()
    times = [each["resumed_s"] for each in done]
    what = {"server": "the postmaster", "machine": "Patroni and every process of its server"}[kind]
    return (
        what, len(done), float(np.median(times)), float(np.quantile(times, 0.9)), max(times),
        sum(each["acknowledged"] for each in done), sum(each["lost"] for each in done),
        sum(each["promoted"] != each["killed"] for each in done),
    )  # fmt: skip


def _tiers(runs: Mapping[str, Any]) -> list[str]:
    if not runs:
        return ["Not measured yet."]
    known = sorted((_figures(run) for run in runs.values()), key=lambda each: each.n)
    parts = [_searches(known), _costs(known), _conditions(runs)]
    with_hot = [each for each in known if each.hot_rows]
    return parts + _arithmetic(known[-1], with_hot[-1] if with_hot else None)


def _figures(run: Mapping[str, Any]) -> Figures:
    body = {key: value for key, value in run.items() if key != "conditions"}
    return Figures(**{**body, "searches": tuple(Search(**each) for each in body["searches"])})


def _searches(known: Sequence[Figures]) -> str:
    columns = ("nodes × d", "partitions", "ranked again, each partition", f"recall@{K}", "p50 ms", "p99 ms", "CPU ms")
    return table(columns, [
        (f"{each.n:,} × {each.dim}", each.partitions, s.candidates, f"{s.recall:.3f}", s.p50_ms, s.p99_ms, s.cpu_ms)
        for each in known for s in each.searches
    ])  # fmt: skip


def _costs(known: Sequence[Figures]) -> str:
    columns = ("nodes × d", "heap bytes a node", "warm index", "hot index", "warm build CPU ms a node", "hot build",
               "hot CPU ms a query and partition", "hot recall", "cold CPU ms", "server's memory MiB")  # fmt: skip
    return table(columns, [
        (f"{each.n:,} × {each.dim}", each.heap_bytes / each.n, each.warm_bytes / each.n,
         each.hot_bytes / each.hot_rows if each.hot_rows else "-", 1e3 * each.build_cpu_s / each.n,
         1e3 * each.hot_build_cpu_s / each.hot_rows if each.hot_rows else "-", each.hot_cpu_ms or "-",
         f"{each.hot_recall:.3f}" if each.hot_rows else "-", each.cold_cpu_ms, each.rss_bytes / 2**20)
        for each in known
    ])  # fmt: skip


def _arithmetic(biggest: Figures, with_hot: Figures | None) -> list[str]:
    """From the biggest run, its hot tier from the biggest that measured one."""
    if with_hot is None:
        return ["## To a billion", "Not computed: no run with `--hot`."]
    measured = replace(biggest, **{key: value for key, value in vars(with_hot).items() if key.startswith("hot_")})
    used = arithmetic.rates(measured, measured.dim)
    intro = (
        f"Computed, not measured, from the run of {measured.n:,} × {measured.dim}. There the warm tier with"
        f" {used.candidates} candidates a partition has recall@{K} {used.recall:.3f}"
        f" (wanted {arithmetic.WANTED_RECALL}). Assumed: partitions of {arithmetic.PARTITION:,} rows; build and search"
        " grow with the logarithm of a partition's rows and in proportion to the dimension (hot: also to its band's"
        " efConstruction and efSearch); recall stays as measured; every row that is ranked again is a read from disk,"
        f" of {arithmetic.READS_S:,} a second and machine;"
        f" {arithmetic.ROW_BYTES:,} bytes a node beside its vector; indexes fill {arithmetic.RESIDENT:.0%} of memory,"
        f" data {arithmetic.FREE:.0%} of disk; {arithmetic.COPIES} copies of everything (etcd votes elsewhere)."
        f" Prices: {arithmetic.PRICES_OF}."
    )
    columns = ("nodes", "d", "tiers", "memory GiB", "disk GiB", "build core-hours", "build hours", "machines",
               "CPU ms a query", "disk reads a query", "queries/s", "€ a month")  # fmt: skip
    rows = [
        (f"{each.nodes / 1e6:,.0f} M", each.dimension, each.mix, each.memory_gib, each.disk_gib, each.build_core_hours,
         each.build_hours, f"{each.machines} × {each.machine}", each.query_cpu_ms, each.query_reads,
         each.queries_s, each.euros)
        for each in arithmetic.needs(measured)
    ]  # fmt: skip
    prices = table(("machine", "€ a month"), [(machine.name, machine.euros) for machine in arithmetic.MACHINES])
    return ["## To a billion", intro, table(columns, rows), prices]


def _conditions(runs: Mapping[str, Any]) -> str:
    last = max((run["conditions"] for run in runs.values()), key=lambda each: str(each["date"]))
    return (
        f"Last measured {last['date']} on {last['processor']}, {last['memory']}; load {last['load at the start']} "
        f"at the start."
    )
