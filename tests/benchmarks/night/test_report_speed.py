"""How long the night's page takes at `--n` answers of one day.

python -m pytest -m benchmark --n 100000 --keep FOLDER tests/benchmarks/night/test_report_speed.py
"""

from __future__ import annotations

import time

import psycopg
import pytest

from ruvllm.database.pool import Database
from ruvllm.reporting.gather import gather
from ruvllm.reporting.page import page
from tests.analytics.analytics_rows import add_night, fill
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark

WANTED_S = 10.0


def test_the_page_of_a_day(database: Database, database_url: str, results: Report, n: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        fill(owner, "default", n, days=1)
        for night in range(1, 31):
            cycle_id = add_night(owner, "default", night)
        owner.execute(
            "UPDATE learning.cycles SET started_at = now() - (31 - night) * interval '1 minute' - '2 days'::interval"
        )
        owner.execute("UPDATE learning.cycles SET started_at = now() WHERE id = %s", [cycle_id])
        owner.execute("VACUUM ANALYZE")
    begun = time.monotonic()
    gathered = gather(database, cycle_id, {})
    read = time.monotonic()
    html = page(gathered)
    drawn = time.monotonic()
    assert gathered.answers == n
    results.table(
        f"The page of a day with {n} answers and 30 nights",
        ("gather s", "draw s", "whole s", "bytes"),
        [(round(read - begun, 2), round(drawn - read, 2), round(drawn - begun, 2), len(html.encode()))],
        "matplotlib's import is in it.",
    )
    results.target(
        f"the report of {n} answers", f"under {WANTED_S:g} s", f"{drawn - begun:.2f} s", drawn - begun < WANTED_S
    )
