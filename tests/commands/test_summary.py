"""What a night's summary says of memory: on a dry night what would have been merged, and what somebody must look at."""

from __future__ import annotations

from typing import Any

import pytest

from ruvllm.commands import summary
from ruvllm.settings import Settings

MAINTAINED = {
    "merged_exact": 0, "merged_near": 0, "would_merge_exact": 4, "would_merge_near": 17, "dry_run": True,
    "alarms": [], "counts": {"nodes": 7, "edges": 9},
}  # fmt: skip


def _shown(settings: Settings, maintained: dict[str, Any]) -> str:
    steps = {
        "day": {"questions": 0, "tiers": [], "writeback": {}},
        "collect": {"queries": 0, "runs": 0, "prefix_saving": None},
        "evaluate": {
            "n_train": 0, "n_test": 0, "before": "best", "regret_before": 0.1, "regret_after": 0.1,
            "regret_after_interval": (0.0, 0.2), "accuracy_tier": 0.5, "policies": [], "warnings": [],
        },
        "propose": {"version": "1", "gates": []},
        "promote": {"promoted": False, "why": "no approval"},
        "maintain": maintained,
        "serve": {"served": False},
    }  # fmt: skip
    with summary.console.capture() as captured:
        summary.show_night(settings, {"night": 1, "cycle_id": "c", "steps": steps})
    return captured.get()


@pytest.mark.parametrize(
    ("of", "wanted"),
    [({}, "4 / 17"), ({"dry_run": False, "merged_exact": 2, "merged_near": 3}, "2 / 3")],
)
def test_a_dry_night_shows_what_it_would_have_merged(settings: Settings, of: dict[str, Any], wanted: str) -> None:
    shown = _shown(settings, {**MAINTAINED, **of})
    assert wanted in shown
    assert ("duplicates found" in shown) is (of == {})


def test_alarms_are_shown(settings: Settings) -> None:
    assert "alarm" not in _shown(settings, MAINTAINED)
    shown = _shown(settings, {**MAINTAINED, "alarms": ["recall 0.41", "edges_pkey is corrupt"]})
    assert "recall 0.41" in shown
    assert "edges_pkey is corrupt" in shown
