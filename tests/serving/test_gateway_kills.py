"""What the gateway acknowledged is there after kill -9 in the middle of its write-backs: once, scored, written back."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.serving.kills import CLIENTS, Torture

KILLS = 50
CONTROLS = 4


def test_fifty_kills_in_the_middle_of_write_backs_lose_and_double_nothing(database_url: str, tmp_path: Path) -> None:
    tally = Torture(database_url, tmp_path, load_s=0.05).run(KILLS)
    assert tally.kills == KILLS
    assert tally.in_flight >= KILLS * 0.8  # it was killed while requests were under way
    assert tally.acknowledged >= KILLS * CLIENTS
    assert tally.clean, tally.as_text()


def test_the_null_control_loses_some(database_url: str, tmp_path: Path) -> None:
    """The method can fail: a gateway that acknowledges before it commits loses answers, and it is seen."""
    tally = Torture(database_url, tmp_path, late=True, load_s=0.0).run(CONTROLS)
    assert tally.lost_answers > 0, tally.as_text()
