"""After a promotion: a champion that does not serve goes back to the one before, and only then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, ProcessError
from ruvllm.nightly.verifying import verify_champion
from ruvllm.registry import ledger
from ruvllm.registry.ledger import NewRow
from ruvllm.serving import probe
from ruvllm.settings import Settings


@dataclass(frozen=True)
class Champion:
    version: str


@pytest.fixture
def two(database: Database) -> Database:
    """Version 1, then version 2."""
    row = None
    for version in ("1", "2"):
        with database.transaction() as connection:
            row = ledger.append(connection, row, NewRow("promote", version, "0" * 64, "file:///x", "alice"))
    return database


def load(database: Database) -> Champion | None:
    with database.transaction() as connection:
        row = ledger.current(connection)
    return Champion(row.version) if row else None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whom the gateway was asked for; the router "2" never takes over there, and "3" answers nothing."""
    versions: list[str] = []

    def ask_gateway(_settings: Settings, version: str, question: str) -> probe.Reply:
        versions.append(version)
        if version == "2":
            raise ProcessError("gateway: router '1' decides, want '2'")
        return probe.Reply(question, "" if version == "3" else "Accra", "tier", version)

    monkeypatch.setattr(probe, "ask_gateway", ask_gateway)
    return versions


def verify(settings: Settings, database: Database, **more: Any) -> dict[str, Any]:
    return verify_champion(settings, database, lambda: load(database), **more)


def test_a_new_champion_that_does_not_answer_is_rolled_back(
    settings: Settings, two: Database, asked: list[str]
) -> None:
    result = verify(settings, two, may_roll_back=True)
    assert (result["served"], result["router_version"], result["rolled_back"]) == (True, "1", "2")
    assert "want '2'" in result["why"]
    assert asked == ["2", "1"]
    with two.transaction() as connection:
        row = ledger.current(connection)
    assert row is not None
    assert (row.action, row.version, row.approved_by) == ("rollback", "1", "flows/serve")
    assert "want '2'" in row.reason


def test_an_older_champion_is_not_rolled_back_for_a_gateway_that_is_ill(
    settings: Settings, two: Database, asked: list[str]
) -> None:
    with pytest.raises(ProcessError, match="want '2'"):
        verify(settings, two, may_roll_back=False)
    with two.transaction() as connection:
        assert len(ledger.history(connection)) == 2


def test_a_bundle_that_fails_its_golden_vectors_is_rolled_back(
    settings: Settings, two: Database, asked: list[str]
) -> None:
    def loads() -> Champion | None:
        champion = load(two)
        if champion is not None and champion.version == "2":
            raise BundleError("golden vector 3 differs")
        return champion

    result = verify_champion(settings, two, loads, may_roll_back=True)
    assert (result["router_version"], asked) == ("1", ["1"])


def test_the_first_champion_has_nothing_to_go_back_to(settings: Settings, database: Database, asked: list[str]) -> None:
    assert verify(settings, database, may_roll_back=True)["served"] is False
    with database.transaction() as connection:
        ledger.append(connection, None, NewRow("promote", "3", "0" * 64, "file:///x", "alice"))
    with pytest.raises(ProcessError, match=r"answered .* with nothing"):
        verify(settings, database, may_roll_back=True)
