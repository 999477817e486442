"""16 promoters at once, 100 rounds: one winner a round, what the ledger says at the end, and where the alias is.

python -m pytest -m benchmark --keep FOLDER tests/benchmarks/night/test_promoters.py
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ruvllm.database.pool import Database
from ruvllm.registry import ledger
from ruvllm.registry.promotion import CHAMPION, reconcile_alias
from ruvllm.registry.tracking import MODEL, mlflow_session
from ruvllm.settings import Settings
from tests.benchmarks.memory.report import Report
from tests.registry.ledger_race import PROMOTERS, race

pytestmark = pytest.mark.benchmark

ROUNDS, ALIAS_ROUNDS = 100, 20


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


def test_the_alias_is_where_the_ledger_is(database: Database, settings: Settings, results: Report) -> None:
    """Every promoter of a round, winner or not, points the alias as it leaves; after the round it is the champion's."""
    with mlflow_session(settings) as client:
        client.create_registered_model(MODEL)
        for _ in range(1 + ALIAS_ROUNDS * PROMOTERS):
            client.create_model_version(MODEL, "file:///nowhere", tags={"bundle_sha256": "0" * 64})
    agreed = 0
    for number in range(ALIAS_ROUNDS):
        (winner,) = race(database, number)
        with ThreadPoolExecutor(PROMOTERS) as threads:
            said = list(threads.map(lambda _: reconcile_alias(settings, database), range(PROMOTERS)))
        with mlflow_session(settings) as client:
            alias = str(client.get_registered_model(MODEL).aliases[CHAMPION])
        agreed += set(said) == {winner} and alias == winner
    results.target("the alias is at the round's winner", f"{ALIAS_ROUNDS} of {ALIAS_ROUNDS}",
                   f"{agreed} of {ALIAS_ROUNDS}", agreed == ALIAS_ROUNDS)  # fmt: skip
    assert agreed == ALIAS_ROUNDS
