"""The ledger in a real Postgres: one winner among many, and a history that rolls back like a stack."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import RegistryError
from ruvllm.registry import ledger
from ruvllm.registry.ledger import LedgerRow, NewRow
from tests.registry.ledger_race import race


def new(version: str, action: str = "promote") -> NewRow:
    return NewRow(
        action, version, "0" * 64, f"/artifacts/{version}", "tester", gates=[{"name": "g", "outcome": "pass"}]
    )


def append(database: Database, previous: LedgerRow | None, row: NewRow) -> LedgerRow:
    with database.transaction() as connection:
        return ledger.append(connection, previous, row)


def test_eight_promoters_that_saw_the_same_champion_have_one_winner(database: Database) -> None:
    together = threading.Barrier(8)

    def promote(number: int) -> str:
        together.wait()
        try:
            return append(database, None, new(str(number))).version
        except RegistryError:
            return ""

    with ThreadPoolExecutor(8) as threads:
        winners = [version for version in threads.map(promote, range(8)) if version]
    with database.transaction() as connection:
        assert [row.version for row in ledger.history(connection)] == winners
    assert len(winners) == 1


def test_of_sixteen_promoters_one_wins_each_round(database: Database) -> None:
    winners = [race(database, number) for number in range(6)]
    with database.transaction() as connection:
        rows = ledger.history(connection)
    assert [len(won) for won in winners] == [1] * 6
    assert [row.version for row in rows] == [won[0] for won in winners]
    assert [row.previous for row in rows] == [None, *(won[0] for won in winners[:-1])]


def test_rows_name_their_predecessor_and_are_read_back_whole(database: Database) -> None:
    first = append(database, None, new("1"))
    second = append(database, first, new("2"))
    assert (second.previous, second.gates) == ("1", [{"name": "g", "outcome": "pass"}])
    with database.transaction() as connection:
        assert ledger.current(connection) == second


def test_the_same_version_again_is_not_the_same_champion(database: Database) -> None:
    """Judged against the first reign of version 1, which ended and began again since."""
    first = append(database, None, new("1"))
    back = append(database, append(database, first, new("2")), new("1", "rollback"))
    with pytest.raises(RegistryError, match="the champion is now version 1"):
        append(database, first, new("3"))
    assert append(database, back, new("3")).previous == "1"


def test_rollbacks_take_promotions_away_one_by_one(database: Database) -> None:
    row = None
    for change in (new("1"), new("2"), new("3"), new("2", "rollback"), new("1", "rollback"), new("4")):
        row = append(database, row, change)
    with database.transaction() as connection:
        assert [r.version for r in ledger.champions(ledger.history(connection))] == ["1", "4"]


def test_a_row_is_never_changed(database: Database) -> None:
    append(database, None, new("1"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.transaction() as connection:
        connection.execute("UPDATE registry.ledger SET version = '2'")
