"""The night's attention: trained on what proved useful, judged, and packed with the candidate router as one bundle.

The router's own bundle stays as training left it (a refinement begins there); beside it lies the same with the part,
which is what is proposed. Knows nothing of Prefect or MLflow.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruvllm import progress
from ruvllm.errors import SettingsError
from ruvllm.nightly.steps import step
from ruvllm.router.bundle import read_bundle
from ruvllm.settings import Settings
from ruvllm.workplace import Workplace

if TYPE_CHECKING:  # it imports torch
    from ruvllm.learning.attention_part import Part

Result = dict[str, Any]

ROUTER, WHOLE = "bundle", "attended"  # folders of a cycle: the router as it was trained, and with its attention part


def attend(settings: Settings, cycle_id: str) -> Result:
    """Train attention, hold it against the order before it, and put what passed beside the candidate router.

    A candidate carries a new part, the champion's unchanged, or none; the result says which and why.
    """

    from ruvllm.learning.attention_lessons import read_lessons
    from ruvllm.learning.attention_part import NONE, Part, champion_part, choose_part, describe

    def work(place: Workplace) -> Result:
        cycle = settings.state_dir / "cycles" / cycle_id
        if settings.attention == "off":
            return packed(cycle, Part(NONE, "RUVLLM_ATTENTION is off"))
        champion = champion_part(place.champion(), place.embedder.id)
        lessons = read_lessons(place.memory, _gold(), progress=progress.stage("Reading what proved useful"))
        part = choose_part(
            lessons, champion, place.embedder.id, place.embedder.dimension, cycle_id,
            progress=progress.stage("Training attention"),
        )  # fmt: skip
        return {**describe(lessons, part), **packed(cycle, part)}

    return step(settings, cycle_id, "attend", work)


def proposed(cycle: Path) -> Path:
    """The bundle of a cycle that goes to review, or went."""
    return cycle / WHOLE if (cycle / WHOLE).is_dir() else cycle / ROUTER


def carry(champion: Path, cycle: Path) -> bool:
    """Give the router of `cycle` the part that this cycle's champion has, unchanged; False where it has none.

    Raises:
        BundleError: one of the bundles is not whole, or cannot be written.
    """
    from ruvllm.learning.attention_part import pack, part_in

    shutil.rmtree(cycle / WHOLE, ignore_errors=True)  # of a run that was killed
    part = part_in(proposed(champion))
    if part is None:
        return False
    pack(cycle / ROUTER, part, cycle / WHOLE)
    return True


def packed(cycle: Path, part: Part) -> Result:
    """Put the part beside the router of `cycle`; what a killed run left there goes."""
    from ruvllm.learning.attention_part import pack

    shutil.rmtree(cycle / WHOLE, ignore_errors=True)
    if part.content is not None:
        pack(cycle / ROUTER, part.content, cycle / WHOLE)
    return {**part.as_dict(), "sha256": read_bundle(proposed(cycle)).sha256}


def _gold() -> dict[str, tuple[str, ...]]:
    """Of the demonstration's questions; where its data is not installed, traffic alone teaches."""
    from ruvllm.learning.attention_lessons import corpus_gold

    try:
        return corpus_gold()
    except SettingsError:
        return {}


def markdown(result: Result) -> str:
    """What a step came to, for a reader."""
    lessons = ", ".join(f"{count} {origin}" for origin, count in result.get("lessons", {}).items()) or "none"
    head = f"# Attention: {result['part']}\n\n{result['why']}. Lessons: {lessons}; {result.get('held', 0)} judged by."
    tables = [f"\n## {name}\n\n{table}" for name, table in result["tables"].items()]
    return "\n".join([head, *tables]) + "\n"


def figures(result: Result) -> dict[str, float]:
    """Of the part that a candidate carries, by the names that MLflow shows."""
    return {f"attention.{name}": float(value) for name, value in result["figures"].items()}
