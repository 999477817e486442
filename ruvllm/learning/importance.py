"""What each place of the layout is worth to a router, and which places are not to be trusted. Knows nothing of torch.

Importance is by permutation (Breiman 2001): the values of a whole place are dealt out anew among the held-out
questions, the router decides again, and what its mean utility loses is what the place was worth to it. A place's
features move together, because half of a one-hot means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.router.layout import LAYOUT

Array = NDArray[np.float32]
Pairs = NDArray[np.int64]
Decide = Callable[[Array], Pairs]  # features (m, 128) -> (tier, bin) of each question, (m, 2)
Score = Callable[[Pairs], NDArray[np.float64]]  # decisions (m, 2) -> utility of each, (m,)

REPEATS = 3
_CONSTANT = 1e-6  # standard deviation below this
_TELLING = 0.98  # area under the ROC curve, either way round, of one feature alone
_LEAST_ROWS = 20  # fewer of a class and a feature separates it by chance


@dataclass(frozen=True)
class Flag:
    """A feature that is not to be trusted: `kind` is constant, label, split or time."""

    feature: str
    kind: str
    why: str


def place_importance(
    features: Array, decide: Decide, score: Score, seed: int, repeats: int = REPEATS
) -> dict[str, Any]:
    """Place -> utility lost (mean over repeats, standard error) and the share of decisions that changed.

    `features` (m, 128) are those of the questions that `decide` and `score` speak of, in their order. A place that does
    not vary among them is worth nothing and is not tried.
    """
    rng = np.random.default_rng(seed)
    first = decide(features)
    base = float(score(first).mean())
    found: dict[str, Any] = {}
    for place in LAYOUT.places:
        runs = np.zeros((repeats, 2))
        if np.ptp(features[:, place.slice], axis=0).any():
            runs = np.array([_permuted(features, place.slice, decide, score, first, base, rng) for _ in range(repeats)])
        error = float(runs[:, 0].std(ddof=1) / np.sqrt(repeats)) if repeats > 1 else 0.0
        found[place.name] = {"lost": float(runs[:, 0].mean()), "error": error, "changed": float(runs[:, 1].mean())}
    return found


def _permuted(
    features: Array, where: slice, decide: Decide, score: Score, first: Pairs, base: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Utility lost and share of decisions changed when one place is dealt out anew."""
    dealt = features.copy()
    dealt[:, where] = features[rng.permutation(len(features)), where]
    pairs = decide(dealt)
    return base - float(score(pairs).mean()), float((pairs != first).any(axis=1).mean())


def flags(features: Array, classes: Mapping[str, NDArray[Any]]) -> list[Flag]:
    """The constant features of (n, 128), and those that alone tell a class apart.

    `classes` maps label, split and time to one class for each row. A feature is named where its area under the ROC
    curve for one class against the rest is 0.98 or more, either way round, with 20 rows on both sides: such a feature
    was computed from what it should predict, or says when a row was collected.
    """
    constant = features.std(axis=0) < _CONSTANT  # (128,)
    found = [Flag(LAYOUT.names[at], "constant", "one value for every question") for at in np.flatnonzero(constant)]
    ranks = _ranks(features)
    for kind, values in classes.items():
        for value in np.unique(values):
            found += _telling(ranks, values == value, constant, kind, value)
    return found


def _telling(
    ranks: NDArray[np.float64], inside: NDArray[np.bool_], constant: NDArray[np.bool_], kind: str, value: object
) -> list[Flag]:
    if min(inside.sum(), (~inside).sum()) < _LEAST_ROWS:
        return []
    area = _area(ranks, inside)
    at = np.flatnonzero((np.maximum(area, 1 - area) >= _TELLING) & ~constant)
    return [Flag(LAYOUT.names[i], kind, f"alone tells {kind} {value} apart, ROC area {area[i]:.3f}") for i in at]


def _area(ranks: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(128,): Mann-Whitney's U of the rows inside over those outside, as a share."""
    ones, others = int(inside.sum()), int((~inside).sum())
    area: NDArray[np.float64] = (ranks[inside].sum(axis=0) - ones * (ones + 1) / 2) / (ones * others)
    return area


def _ranks(features: Array) -> NDArray[np.float64]:
    """(n, f) -> (n, f): ranks from 1 within each column, ties by their mean."""
    ranks = np.empty(features.shape)
    for at in range(features.shape[1]):
        _, which, counts = np.unique(features[:, at], return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks[:, at] = (last - (counts - 1) / 2)[which]
    return ranks


def summary(places: Mapping[str, Any], flagged: list[Flag]) -> dict[str, Any]:
    """What report.json holds of it."""
    return {"places": dict(places), "flags": [vars(flag) for flag in flagged]}


def table(report: Mapping[str, Any], most: int = 12) -> list[str]:
    """Lines of Markdown of what `summary` made: the places worth most, then the flagged features by kind."""
    ranked = sorted(report["places"].items(), key=lambda item: -abs(item[1]["lost"]))
    lines = ["| place | utility lost | standard error | decisions changed |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {got['lost']:+.4f} | {got['error']:.4f} | {got['changed']:.1%} |" for name, got in ranked[:most]
    ]
    without = sum(got["changed"] == 0 for got in report["places"].values())
    lines += ["", f"{without} of {len(report['places'])} places change no decision on the held-out questions."]
    return lines + _flag_lines(report["flags"])


def _flag_lines(flagged: Sequence[Mapping[str, str]]) -> list[str]:
    """Constant features in one line, those that tell something that they should not know each in one of its own."""
    constant = [flag["feature"] for flag in flagged if flag["kind"] == "constant"]
    lines = [f"Constant, {len(constant)} of the 128: {', '.join(constant)}."] if constant else []
    return lines + [f"**{flag['feature']}** {flag['why']}." for flag in flagged if flag["kind"] != "constant"]
