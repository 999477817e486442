"""A refinement between nights: scored answers -> candidate -> report -> registry. Knows nothing of Prefect.

Beside the gateway, never in it: the process that calls this trains for some seconds. What it makes lies in a folder of
its own under `cycles`, as a night's does, so that a promotion finds there what it consolidates. The same answers make
the same candidate: a run that was killed is run again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruvllm.database import open_database
from ruvllm.errors import ArtifactError, LearningError, RegistryError
from ruvllm.learning.traffic import FILE, Traffic, read_traffic, save_traffic
from ruvllm.nightly.attending import ROUTER, carry, proposed
from ruvllm.nightly.consolidation import newest_state
from ruvllm.registry import ledger
from ruvllm.router.bundle import read_bundle
from ruvllm.settings import Settings
from ruvllm.workplace import Workplace, open_workplace

Result = dict[str, Any]

EVERY = 200  # new scored answers
_PREFIX = "refine"


@dataclass(frozen=True)
class Small:
    """What may pass without a person: in whose name, and how many held-out questions may be decided otherwise."""

    approve_as: str
    most_changed: float  # share

    def __post_init__(self) -> None:
        if not self.approve_as.strip() or not 0 <= self.most_changed <= 1:
            raise LearningError(
                f"refinement without a person: name {self.approve_as!r}, at most {self.most_changed:g} of the decisions"
                " changed; want a name and a share from 0 to 1"
            )


def refine_champion(settings: Settings, every: int = EVERY, small: Small | None = None) -> Result:
    """Refine the champion if there are `every` scored answers that neither it nor a waiting candidate has seen.

    The candidate waits for a reviewer, unless `small` says how small a change needs none. Its gates are those of any.

    Raises:
        LearningError: there is no champion, its own night's folder is gone, or what `refine` raises.
        RegistryError: MLflow refused or cannot be reached.
    """
    with open_workplace(settings) as place:
        base = _base(place)
        traffic = read_traffic(settings, place.database, place.ladder, place.embedder)
        through = _refined_through(settings, base)
        fresh = int((traffic.interaction > through).sum())
        if fresh < every:
            return {"refined": False, "why": f"{fresh} new scored answers, want {every}"}
        version = f"{_PREFIX}-{_night_of(base.name)}-{int(traffic.interaction.max())}"
        made = _make(place, base, traffic, version)
        return {**made, **_review(settings, place, made, small)}


def refine_where_served(settings: Settings, every: int = EVERY, small: Small | None = None) -> Result:
    """What a schedule calls: as `refine_champion`, and nothing where no router was ever promoted."""
    database = open_database(settings)
    try:
        with database.transaction() as connection:
            served = ledger.current(connection)
    finally:
        database.close()
    if served is None:
        return {"refined": False, "why": "no router was promoted yet"}
    return refine_champion(settings, every, small)


def _base(place: Workplace) -> Path:
    """The folder that the champion was trained in.

    Raises:
        LearningError: there is no champion, or the folder is gone or holds another router.
    """
    with place.database.transaction() as connection:
        row = ledger.current(connection)
    if row is None or row.cycle_id is None or place.champion() is None:
        raise LearningError(
            "refinement: no promoted router for this ladder; run `ruvllm cycle` and approve its candidate"
        )
    folder = place.settings.state_dir / "cycles" / row.cycle_id
    if not (folder / ROUTER).is_dir() or read_bundle(proposed(folder)).sha256 != row.sha256:
        raise LearningError(
            f"refinement: {folder} does not hold the champion, version {row.version}; restore it from a backup, or let"
            " the next night train anew"
        )
    return folder


def _night_of(name: str) -> str:
    """The night that a refinement of a refinement began with."""
    return name.removeprefix(f"{_PREFIX}-").rpartition("-")[0] if name.startswith(f"{_PREFIX}-") else name


def _refined_through(settings: Settings, base: Path) -> int:
    """The last answer that this champion, or a refinement of it, was fitted on."""
    night = _night_of(base.name)
    made = (settings.state_dir / "cycles").glob(f"{_PREFIX}-{night}-*")
    waiting = [path.name.rpartition("-")[2] for path in made if (path / "refined.json").is_file()]
    return max((int(last) for last in waiting if last.isdigit()), default=0)


def _make(place: Workplace, base: Path, traffic: Traffic, version: str) -> Result:
    from ruvllm.learning.command import single_thread
    from ruvllm.learning.data import load_snapshot
    from ruvllm.learning.evaluate import evaluate
    from ruvllm.learning.ewc import load_ewc
    from ruvllm.learning.refine import part_of, refine, write_refined
    from ruvllm.learning.routing import decision_times
    from ruvllm.registry.package import register_candidate
    from ruvllm.router.runtime import RouterRuntime

    single_thread()
    folder = place.settings.state_dir / "cycles" / version
    folder.mkdir(parents=True, exist_ok=True)
    state = newest_state(place.database, folder)
    if state is None:
        raise LearningError("refinement: no EWC state; consolidate the champion first (the next promotion check does)")
    save_traffic(traffic, folder / FILE)
    shutil.copyfile(base / "snapshot.npz", folder / "snapshot.npz")
    refined = refine(base / ROUTER, traffic, load_ewc(state))
    shutil.rmtree(folder / ROUTER, ignore_errors=True)  # of a run that was killed
    write_refined(refined, version, datetime.now(UTC).isoformat(timespec="seconds"), folder / ROUTER)
    carry(base, folder)
    snapshot, config = load_snapshot(folder / "snapshot.npz"), refined.checkpoint.config
    report = evaluate(snapshot, folder / ROUTER, base / ROUTER, config, part_of(traffic, refined.held))
    runtime = RouterRuntime.load(folder / ROUTER)
    times = decision_times(runtime, refined.features, config.evaluation.timing_calls)
    _write(folder / "report.json", report)
    registered = register_candidate(
        place.settings, place.database, bundle=proposed(folder), report={**report, "decision_us": times},
        cycle_id=version, params={"snapshot": snapshot.digest, **refined.figures},
    )  # fmt: skip
    changes = report["changes"]
    result = {
        "refined": True, "version": registered.version, "router": version, "figures": refined.figures,
        "changed": changes["pair"] / changes["n"], "gates": [gate.as_dict() for gate in registered.gates],
    }  # fmt: skip
    _write(folder / "refined.json", result)
    return result


def _review(settings: Settings, place: Workplace, made: Result, small: Small | None) -> Result:
    from ruvllm.registry import promotion

    if small is None or made["changed"] > small.most_changed:
        over = "" if small is None else f"{made['changed']:.0%} of the decisions changed; "
        return {"promoted": False, "why": f"{over}waits for a reviewer: " + promotion.how_to_approve(made["version"])}
    try:
        promotion.approve(settings, made["version"], small.approve_as, f"changes {made['changed']:.1%} of decisions")
        row = promotion.promote(settings, place.database, made["version"])
    except (RegistryError, ArtifactError) as error:
        return {"promoted": False, "why": str(error)}
    return {"promoted": True, "previous": row.previous}


def _write(path: Path, document: Result) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
