"""How long the analysts' views take at `--n` answers, by an analyst's login, and from what their plans read.

python -m pytest -m benchmark --n 1000000 --keep FOLDER tests/benchmarks/night/test_views.py
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from ruvllm.database import analysts
from ruvllm.settings import PROJECT_ROOT
from tests.analytics.analytics_rows import add_night, fill
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark

WANTED_S = 1.0
ROUNDS = 3
INTENDED = {  # tables that a plan may read from end to end, and why
    "cycles": "a row a night",
    "steps": "a score of rows a night",
    "ledger": "a row a promotion",
    "feedback": "a week of ratings out of all, which are a fraction of the answers",
    "outbox": "what became of all answers ever is asked",
    "oracle_runs": "all that the oracle ever ran is asked",
    "oracle_queries": "the oracle's questions, thousands of them, put into a hash",
    "labels": "every question's newest label is asked",
}


@pytest.fixture
def session(database_url: str, n: int, tmp_path: Path) -> Iterator[Connection]:
    """The analyst `ana_bench` of a tenant with `n` answers over 90 days; a tenth of the questions the oracle knows."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        fill(owner, "default", n, days=90, questions=max(20, min(20_000, n // 50)))
        for night in range(1, 31):
            add_night(owner, "default", night)
        owner.execute("VACUUM ANALYZE")
        access = analysts.add(owner, "ana_bench", "default", tmp_path / "analysts")
        address = make_conninfo(database_url, user="ana_bench", password="", passfile=str(access.password_file))
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("SET statement_timeout = '300s'")
            assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (n,)
            yield connection
        analysts.remove(owner, "ana_bench", tmp_path / "analysts")


def cookbook() -> list[tuple[str, str]]:
    """(question, query) of docs/analysts.md; those on memory's own tables are measured with memory."""
    text = (PROJECT_ROOT / "docs" / "analysts.md").read_text(encoding="utf-8").split("## Memory at work")[0]
    return [
        (question, query.strip())
        for question, query in re.findall(r"^(\d+\. [^\n]+)\n\n```sql\n(.*?)```", text, re.M | re.S)
    ]


def seconds(session: Connection, query: str) -> float:
    """Median of some rounds, after one that warms the cache."""
    times = []
    for _ in range(ROUNDS + 1):
        begun = time.monotonic()
        session.execute(query.encode()).fetchall()
        times.append(time.monotonic() - begun)
    return statistics.median(times[1:])


def reads(session: Connection, query: str) -> str:
    """The relations that the plan reads, and how."""
    plan = "\n".join(row[0] for row in session.execute(f"EXPLAIN {query}".encode()))
    found = re.findall(r"(Seq Scan|Index Only Scan|Index Scan|Bitmap Heap Scan)(?: using (\w+))? on (\w+)", plan)
    return ", ".join(dict.fromkeys(f"{how} {index or table}" for how, index, table in found))


def test_every_query_of_the_cookbook(session: Connection, results: Report, n: int) -> None:
    rows = [(question, seconds(session, query), reads(session, query)) for question, query in cookbook()]
    results.table(
        f"Queries of docs/analysts.md at {n} answers",
        ("question", "seconds", "reads"),
        [(question, round(took, 3), what) for question, took, what in rows],
        f"An analyst's login, row-level security on; median of {ROUNDS} after one warm-up.",
    )
    slow = [question for question, took, _ in rows if took > WANTED_S]
    results.target(
        f"every query under {WANTED_S:g} s at {n} answers", "none over",
        f"{len(rows) - len(slow)} of {len(rows)}; over: {'; '.join(slow) or 'none'}", not slow,
    )  # fmt: skip
    scanned = {table for _, _, what in rows for table in re.findall(r"Seq Scan (\w+)", what)}
    results.target(
        "plans read by an index, or scan what they are meant to", "no other scan",
        f"scanned: {', '.join(sorted(scanned)) or 'nothing'}", scanned <= INTENDED.keys(),
    )  # fmt: skip
    results.table("Scans that are intended", ("table", "why"), sorted((t, INTENDED.get(t, "**not**")) for t in scanned))
    assert len(rows) >= 15
    assert scanned <= INTENDED.keys()
