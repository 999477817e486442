"""Two nights of tidying on a real Prefect server: the first shows what it would do, the second does it, each once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ruvllm.learning import cycle as cycles
from ruvllm.memory.records import NewNode
from ruvllm.memory.tidy import canary, runs
from ruvllm.memory.writing import burst, writes
from ruvllm.nightly import night
from ruvllm.settings import Settings, load_settings
from ruvllm.workplace import Workplace, open_workplace

TEXT = (
    "Travellers who arrive by ship land at a place that most guide books leave out, though it repays a visit on foot."
    " The harbour of Tema was built after independence and handles most of the cargo of Ghana. It lies thirty"
    " kilometres east of Accra on the Gulf of Guinea and has been widened twice since it was opened in 1962."
)
NODE = NewNode(TEXT, source="guide")


@pytest.fixture
def settings(empty_database_url, tmp_path, monkeypatch) -> Settings:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_LADDER", "packaged")
    return load_settings()


@pytest.fixture
def place(settings: Settings) -> Iterator[Workplace]:
    with open_workplace(settings) as place:
        yield place


def _night(settings: Settings, place: Workplace) -> dict[str, dict]:
    from flows.maintain import maintain

    cycle_id = night.begin(settings)
    maintain(cycle_id)
    count = len(runs.latest(place.database, 100))
    maintain(cycle_id)  # taken up again: nothing is done twice
    assert len(runs.latest(place.database, 100)) == count
    cycles.finish_cycle(place.database, cycle_id)
    return {name: done.result for name, done in cycles.steps_done(place.database, cycle_id).items()}


def _write_long_ago(place: Workplace) -> None:
    with place.database.transaction() as connection:
        writes.claim(connection, ["old", "new"])
        connection.execute("UPDATE memory.writes SET written_at = now() - interval '31 days' WHERE key = 'old'")


def test_the_first_night_shows_and_the_second_does(prefect_client, settings: Settings, place: Workplace) -> None:
    ids = place.memory.add([NODE, replace(NODE, text=TEXT.replace("was built", "was constructed"))]).ids
    place.memory.link_all([(ids[0], ids[1], "SameTopic", 0.9)], "test")
    burst.add(place.database, [NewNode("Takoradi is the other harbour of Ghana.", kind="Document", source="burst")])
    _write_long_ago(place)
    canary.add(place.database, place.embedder, "Where does the cargo of Ghana go through?", ids[0], "harbour of Tema")

    first = _night(settings, place)
    assert list(first) == ["watch", "catch-up", "merge", "compact", "archive", "decay", "upkeep", "maintain"]
    assert first["watch"] == {"new": 0, "questions": 1, "recall": 1.0}
    assert [first[name]["dry_run"] for name in ("merge", "compact", "archive", "decay")] == [True] * 4
    assert (first["catch-up"]["merged"], first["catch-up"]["left"]) == (1, 0)
    assert first["upkeep"]["writes_forgotten"] == 1
    maintained = first["maintain"]
    assert (maintained["merged_near"], maintained["would_merge_near"]) == (0, 1)
    assert (maintained["counts"]["nodes"], maintained["alarms"]) == (3, [])

    second = _night(settings, place)["maintain"]
    assert (second["merged_near"], second["dry_run"], second["status"]) == (1, False, "done")
    assert (second["counts"]["nodes"], second["counts"]["archived"]) == (2, 1)
    runs.undo(place.database, second["run"])
    assert place.memory.counts()["nodes"] == 3
    json.dumps(first)  # what a script reads
