"""What each part of the router is worth: the same night's snapshot trained without it, decided by the code that serves.

Every variant is trained, written as a bundle, loaded by the runtime and asked for the held-out questions; what it loses
is paired with the whole router question by question. A part that the snapshot or the settings have no use for (no
session, nothing replayed, no EWC state) is said to be absent, not measured as nothing. Knows nothing of the database.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.evaluation.regret import Bootstrap, Interval, make_bootstrap
from ruvllm.learning.config import Config
from ruvllm.learning.data import Snapshot
from ruvllm.learning.ewc import Ewc
from ruvllm.learning.exploring import WAYS, stream_regret
from ruvllm.learning.inputs import Inputs
from ruvllm.learning.routing import route
from ruvllm.learning.targets import make_targets, take
from ruvllm.learning.train import train, write
from ruvllm.progress import Progress, silent
from ruvllm.router.runtime import RouterRuntime

Wide = NDArray[np.float64]

_WHEN = "1970-01-01T00:00:00+00:00"  # a bundle that is thrown away needs no date
_PASS = 2  # in `split`: neither trained on nor tested


@dataclass(frozen=True)
class Ablated:
    """A variant on the held-out questions; `absent` says why it was not measured. Differences: variant minus whole."""

    name: str
    utility: float | None = None
    difference: Interval | None = None
    absent: str = ""


@dataclass(frozen=True)
class Explored:
    """Mean regret a question of one way to explore, over streams of the held-out questions."""

    way: str
    regret: float
    seeds: int


@dataclass(frozen=True)
class Ablation:
    tested: int
    rows: tuple[Ablated, ...]
    exploring: tuple[Explored, ...]


@dataclass(frozen=True, eq=False)
class _Case:
    snapshot: Snapshot
    config: Config
    ewc: Ewc | None
    compact: bool = False


Change = Callable[[_Case], "_Case | str"]  # a word instead of a case: why there is nothing to take away


def _no_recurrence(case: _Case) -> _Case | str:
    if not (case.snapshot.session != "").any():
        return "no question has a session"
    alone = np.full_like(case.snapshot.session, "")
    return replace(case, snapshot=replace(case.snapshot, session=alone))


def _no_replay(case: _Case) -> _Case | str:
    if not case.snapshot.replayed.any():
        return "nothing was replayed in this night"
    split = np.where(case.snapshot.replayed & (case.snapshot.split == 0), _PASS, case.snapshot.split)
    return replace(case, snapshot=replace(case.snapshot, split=split.astype(case.snapshot.split.dtype)))


def _no_ewc(case: _Case) -> _Case | str:
    return replace(case, ewc=None) if case.ewc is not None else "there was no EWC state, as in a first night"


def _no_quality_head(case: _Case) -> _Case | str:
    return _router(case, decides="model")


def _low_rank(case: _Case) -> _Case | str:
    """Matrices of another shape cannot start from an EWC state's anchor: they start anew."""
    return replace(_router(case, rank=max(1, case.config.router.rank // 4)), ewc=None)


def _full_rank(case: _Case) -> _Case | str:
    return replace(_router(case, rank=case.config.router.hidden), ewc=None)


def _curriculum(case: _Case) -> _Case | str:
    share = 0.0 if case.config.training.curriculum else 0.5
    return replace(case, config=replace(case.config, training=replace(case.config.training, curriculum=share)))


def _bytes(case: _Case) -> _Case | str:
    """Quantisation alone: all input weights but the least are kept."""
    return replace(_kept(case, 0.999), compact=True)


def _sparse_bytes(case: _Case) -> _Case | str:
    return replace(_kept(case, min(case.config.compression.kept, 0.25)), compact=True)


def _router(case: _Case, **changes: object) -> _Case:
    return replace(case, config=replace(case.config, router=replace(case.config.router, **changes)))  # type: ignore[arg-type]


def _kept(case: _Case, share: float) -> _Case:
    return replace(case, config=replace(case.config, compression=replace(case.config.compression, kept=share)))


PARTS: tuple[tuple[str, Change], ...] = (
    ("without recurrence: every turn a first one", _no_recurrence),
    ("rank of the recurrent matrices / 4, started anew", _low_rank),
    ("full rank, started anew", _full_rank),
    ("without the quality head: the model head decides", _no_quality_head),
    ("weights in bytes, none left out", _bytes),
    ("weights in bytes, three quarters left out", _sparse_bytes),
    ("the other way with the curriculum", _curriculum),
    ("without replay of earlier nights", _no_replay),
    ("without EWC", _no_ewc),
)


def ablate(
    snapshot: Snapshot, config: Config, ewc: Ewc | None = None, show: Progress = silent, seeds: int = 20
) -> Ablation:
    """Train the whole router and one without each part; play the ways to explore over `seeds` orders.

    Raises:
        LearningError: no question is held out, or too few are there to train on.
    """
    if not len(snapshot.test):
        raise LearningError("ablation: no held-out question, want at least one; collect more (ruvllm cycle)")
    whole = _Case(snapshot, config, ewc)
    groups = snapshot.group[snapshot.test]
    bootstrap = make_bootstrap(groups, config.evaluation.resamples, config.evaluation.seed)
    with tempfile.TemporaryDirectory(prefix="ruvllm-ablation-") as folder:
        show(0, len(PARTS) + 2, "the whole router")
        runtime = _trained(whole, Path(folder) / "whole")
        base = _utilities(whole, runtime)
        rows = [Ablated("the whole router", float(base.mean()))]
        for place, (name, change) in enumerate(PARTS):
            show(place + 1, len(PARTS) + 2, name)
            rows.append(_ablated(name, change(whole), base, bootstrap, Path(folder) / str(place)))
        show(len(PARTS) + 1, len(PARTS) + 2, "ways to explore")
        exploring = tuple(_explored(runtime, snapshot, way, seeds) for way in WAYS)
    show(len(PARTS) + 2, len(PARTS) + 2, "")
    return Ablation(len(snapshot.test), tuple(rows), exploring)


def _ablated(name: str, case: _Case | str, base: Wide, bootstrap: Bootstrap, folder: Path) -> Ablated:
    if isinstance(case, str):
        return Ablated(name, absent=case)
    try:
        runtime = _trained(case, folder)
    except LearningError as error:  # too little is left without the part: that says something of it, not nothing
        return Ablated(name, absent=f"not trained: {error}")
    utilities = _utilities(case, runtime)
    return Ablated(name, float(utilities.mean()), bootstrap.interval(utilities - base))


def _trained(case: _Case, folder: Path) -> RouterRuntime:
    write(train(case.snapshot, case.config, case.ewc), case.config, Inputs("ablation", _WHEN), folder)
    return RouterRuntime.load(folder, compact=case.compact)


def _utilities(case: _Case, runtime: RouterRuntime) -> Wide:
    """(m,) of the held-out questions, by what the router would have served."""
    rows = case.snapshot.test
    pairs = route(runtime, case.snapshot, rows).pairs
    return np.asarray(take(make_targets(case.snapshot).utility[rows], pairs), dtype=np.float64)


def _explored(runtime: RouterRuntime, snapshot: Snapshot, way: str, seeds: int) -> Explored:
    streams = [float(stream_regret(runtime, snapshot, way, seed).mean()) for seed in range(seeds)]
    return Explored(way, float(np.mean(streams)), seeds)


def lines(found: Ablation) -> Sequence[tuple[str, str, str]]:
    """Rows of a table: what, utility, difference with its 95 % interval."""
    rows = []
    for each in found.rows:
        utility = "" if each.utility is None else f"{each.utility:.4f}"
        by = each.difference
        difference = each.absent or (f"{by.mean:+.4f} [{by.low:+.4f}, {by.high:+.4f}]" if by else "")
        rows.append((each.name, utility, difference))
    return rows
