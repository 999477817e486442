"""16 promoters at once, 100 rounds: one winner a round, and what the ledger says at the end.

python -m pytest -m benchmark --keep FOLDER tests/benchmarks/night/test_promoters.py
"""

from __future__ import annotations

import pytest

from ruvllm.database.pool import Database
from ruvllm.registry import ledger
from tests.benchmarks.memory.report import Report
from tests.registry.ledger_race import PROMOTERS, race

pytestmark = pytest.mark.benchmark

ROUNDS = 100


def test_one_winner_a_round(database: Database, results: Report) -> None:
    winners = [race(database, number) for number in range(ROUNDS)]
    with database.transaction() as connection:
        rows = ledger.history(connection)
    single = sum(len(won) == 1 for won in winners)
    agree = [row.version for row in rows] == [won[0] for won in winners if won]
    results.table(
        f"{PROMOTERS} promoters, {ROUNDS} rounds",
        ("rounds with one winner", "rows in the ledger", "the ledger holds the winners in order"),
        [(single, len(rows), str(agree))],
        "A winner is a promoter whose append did not raise.",
    )
    results.target("one winner a round", f"{ROUNDS} of {ROUNDS}", f"{single} of {ROUNDS}", single == ROUNDS and agree)
    assert (single, len(rows), agree) == (ROUNDS, ROUNDS, True)
