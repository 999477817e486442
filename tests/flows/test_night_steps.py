"""A step of the night is done once, and one that is done costs a resumed night no encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import LearningError
from ruvllm.learning import cycle as cycles
from ruvllm.nightly import steps
from ruvllm.settings import Settings


@pytest.fixture
def here(settings: Settings, database_url: str, database: Database) -> tuple[Settings, str]:
    return replace(settings, database_url=database_url), cycles.open_cycle(database).id


def test_a_step_that_is_done_is_passed_with_nothing_opened(
    here: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, cycle_id = here
    assert steps.bare_step(settings, cycle_id, "train", lambda _: {"rows": 3}) == {"rows": 3}

    def opened(_: Settings) -> Any:
        raise AssertionError("the encoder was loaded for a step that is done")

    monkeypatch.setattr(steps, "open_workplace", opened)
    assert steps.step(settings, cycle_id, "train", lambda _: {"rows": 4}) == {"rows": 3}
    with pytest.raises(AssertionError, match="encoder was loaded"):
        steps.step(settings, cycle_id, "evaluate", lambda _: {})


def test_a_step_that_fails_is_not_done(here: tuple[Settings, str], database: Database) -> None:
    settings, cycle_id = here

    def fails(_: Database) -> dict[str, Any]:
        raise LearningError("too little")

    with pytest.raises(LearningError, match="too little"):
        steps.bare_step(settings, cycle_id, "collect", fails)
    assert cycles.steps_done(database, cycle_id) == {}
    assert steps.bare_step(settings, cycle_id, "collect", lambda found: {"tenant": found.tenant}) == {
        "tenant": database.tenant
    }
