"""What is chosen without looking at the rows it is judged by: steps, caution, calibration, threshold.

Grouped cross-validation in place of one validation split: a first night has tens of questions, and a fifth of them
decides nothing, while out-of-fold decisions of all of them do. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ruvllm.evaluation.selective import Selective, selective_threshold
from ruvllm.learning.config import PROMISE, Config
from ruvllm.learning.data import Rows, Strings
from ruvllm.learning.fit import Material, fit, forward, make_batch, new_network
from ruvllm.learning.loss import expected_utility
from ruvllm.learning.targets import Pairs, Wide, best_fixed, take
from ruvllm.progress import Progress
from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.fastgrnn import RouterNetwork

_LEAST_SLOPE = 0.05  # of the calibration; below it the confidence is the base rate
_LEAST_ROWS_FOR_FALLBACK = 50  # with fewer, whether a fallback helps is chance: it stays off
_THRESHOLD_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


class Work(Protocol):
    """Where finished folds are kept (learning/work.py)."""

    def read_fold(self, number: int, out: NDArray[np.bool_], into: OutOfFold) -> bool:
        """Fill the rows `out` of `into`; False where the fold was not finished."""
        ...

    def write_fold(self, number: int, out: NDArray[np.bool_], found: OutOfFold) -> None: ...


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What networks that did not see a row say of it. `fixed` is the best fixed choice of the rows they saw."""

    rows: Rows  # (m,)
    tiers: Wide  # (checks, m, 4) logits
    bins: Wide  # (checks, m, 5)
    confidence: Wide  # (checks, m) logits
    expected: Wide  # (checks, m) utility of the softmax policy
    fixed: Pairs  # (m, 2)


@dataclass(frozen=True)
class Chosen:
    """Utilities are means over the out-of-fold decisions, `caution` and `threshold` applied."""

    steps: int
    caution: float
    fixed: tuple[int, int]  # on all training rows: what the caution is in favour of
    slope: float  # confidence = sigmoid(slope * logit + intercept)
    intercept: float
    threshold: float
    utility: float
    utility_fixed: float
    fallback_rate: float
    selective: Selective  # where the error rate is promised; an error: not within epsilon of the oracle


def folds(groups: Strings, count: int, seed: int) -> NDArray[np.int64]:
    """(m,): the fold of each row, groups whole, the largest groups spread first."""
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(min(count, len(names)), dtype=np.int64)
    fold_of = {}
    for place in order:
        fold_of[names[place]] = int(filled.argmin())
        filled[fold_of[names[place]]] += sizes[place]
    return np.array([fold_of[name] for name in groups], dtype=np.int64)


def out_of_fold(material: Material, config: Config, show: Progress, work: Work | None = None) -> OutOfFold:
    """Train once a fold from scratch, and keep what each check says of the rows left out.

    With `work`, a fold that an earlier run finished is read and not trained again.
    """
    rows, training = material.snapshot.train, config.training
    fold = folds(material.snapshot.group[rows], training.folds, training.seed)
    checks = training.steps // training.check_every
    m = len(rows)
    result = OutOfFold(
        rows=rows,
        tiers=np.zeros((checks, m, N_TIERS)),
        bins=np.zeros((checks, m, N_BINS)),
        confidence=np.zeros((checks, m)),
        expected=np.zeros((checks, m)),
        fixed=np.zeros((m, 2), dtype=np.int64),
    )
    count = int(fold.max()) + 1
    for number in range(count):
        if work is None or not work.read_fold(number, fold == number, result):
            _run_fold(material, config, fold == number, result, training.seed + 1 + number)
            if work is not None:
                work.write_fold(number, fold == number, result)
        show(number + 1, count + 1, f"fold {number + 1} of {count}")
    return result


def _run_fold(material: Material, config: Config, out: NDArray[np.bool_], into: OutOfFold, seed: int) -> None:
    seen, left = into.rows[~out], into.rows[out]
    batch = make_batch(material, left)
    place = np.searchsorted(into.rows, batch.rows)  # rows rise
    utility = torch.as_tensor(np.where(np.isfinite(u := material.targets.utility[batch.rows]), u, 0.0))

    def check(step: int, network: RouterNetwork) -> None:
        with torch.no_grad():
            outputs = forward(network, batch)
            at = step // config.training.check_every - 1
            into.tiers[at, place] = outputs.choice.numpy()
            into.bins[at, place] = outputs.context.numpy()
            into.confidence[at, place] = outputs.confidence.numpy()
            into.expected[at, place] = expected_utility(outputs, utility.float()).numpy()

    into.fixed[out] = best_fixed(material.targets.utility[seen])
    fit(new_network(material, seen, config, seed), material, seen, config, config.training.steps, seed, check=check)


def choose(oof: OutOfFold, material: Material, config: Config) -> Chosen:
    """Steps by expected utility, caution by the decisions' utility, then the confidence for the decisions so made."""
    utility = material.targets.utility[oof.rows]  # (m, 4, 5)
    at = int(oof.expected.mean(axis=1).argmax())
    caution = choose_caution(lambda c: take(utility, decisions(oof.tiers[at], oof.bins[at], oof.fixed, c)), config)
    pairs = decisions(oof.tiers[at], oof.bins[at], oof.fixed, caution)
    near = take(utility, pairs) >= utility.max(axis=(1, 2)) - config.loss.epsilon
    slope, intercept = calibrate(oof.confidence[at], near)
    confidence = sigmoid(slope * oof.confidence[at] + intercept)
    selective = selective_threshold(confidence, ~near, config.selection.risk, config.selection.delta)
    by_gain = choose_threshold(confidence, pairs, utility)
    threshold = selective.threshold if config.selection.fallback == PROMISE else by_gain
    final = np.where((confidence < threshold)[:, None], step_up(pairs, utility), pairs)
    return Chosen(
        steps=(at + 1) * config.training.check_every,
        caution=caution,
        fixed=best_fixed(utility),
        slope=slope,
        intercept=intercept,
        threshold=threshold,
        utility=float(take(utility, final).mean()),
        utility_fixed=float(take(utility, oof.fixed).mean()),
        fallback_rate=float((confidence < threshold).mean()),
        selective=selective,
    )


def decisions(tiers: Wide, bins: Wide, fixed: Pairs, caution: float) -> Pairs:
    """(m, 4), (m, 5) logits -> (m, 2): the best of each head, the fixed choice ahead by `caution`."""
    rows = np.arange(len(fixed))
    tiers, bins = tiers.copy(), bins.copy()
    tiers[rows, fixed[:, 0]] += caution
    bins[rows, fixed[:, 1]] += caution
    return np.stack([tiers.argmax(axis=1), bins.argmax(axis=1)], axis=1)


def choose_caution(utility_at: Callable[[float], Wide], config: Config) -> float:
    """The largest caution whose utility is within so many standard errors of the best one's, question by question."""
    cautions = sorted(config.selection.caution)
    utilities = np.stack([utility_at(caution) for caution in cautions])  # (cautions, m)
    best = utilities[int(utilities.mean(axis=1).argmax())]
    lost = best - utilities
    errors = lost.std(axis=1) / np.sqrt(lost.shape[1])
    good = lost.mean(axis=1) <= config.selection.caution_errors * errors + 1e-12
    return cautions[int(np.flatnonzero(good).max())]


def calibrate(logits: Wide, near: NDArray[np.bool_], rounds: int = 50) -> tuple[float, float]:
    """Slope and intercept of a logistic fit of `near` on the logits (Platt 1999), one pseudo-question towards (1, 0).

    Temperature scaling with an intercept: the slope is one over the calibration's temperature, the intercept goes into
    the confidence head's bias.
    """
    design = np.stack([logits, np.ones_like(logits)], axis=1)  # (m, 2)
    start = np.array([1.0, 0.0])
    beta = start.copy()
    for _ in range(rounds):
        p = sigmoid(design @ beta)
        gradient = design.T @ (p - near) + (beta - start)
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        beta -= step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
    if beta[0] >= _LEAST_SLOPE:
        return float(beta[0]), float(beta[1])
    rate = (near.sum() + 0.5) / (len(near) + 1.0)
    return _LEAST_SLOPE, float(np.log(rate / (1 - rate)) - _LEAST_SLOPE * logits.mean())


def choose_threshold(confidence: Wide, pairs: Pairs, utility: Wide) -> float:
    """The confidence below which one tier up and one bin wider gained more than its standard error; 0: never."""
    if len(pairs) < _LEAST_ROWS_FOR_FALLBACK:
        return 0.0
    gain = take(utility, step_up(pairs, utility)) - take(utility, pairs)
    best, found = 0.0, 0.0
    for candidate in np.quantile(confidence, _THRESHOLD_SHARES):
        each = np.where(confidence < candidate, gain, 0.0)
        mean, error = each.mean(), each.std() / np.sqrt(len(each))
        if mean > max(best, error):
            best, found = float(mean), float(candidate)
    return found


def step_up(pairs: Pairs, utility: Wide) -> Pairs:
    """The fallback policy's choice (router/policy.py): the next tier and the next bin that were run, if any."""
    ran = np.isfinite(utility[0])  # (4, 5)
    tiers, bins = (_next(np.flatnonzero(ran.any(axis=axis))) for axis in (1, 0))
    return np.stack([tiers[pairs[:, 0]], bins[pairs[:, 1]]], axis=1)


def _next(places: Rows) -> Rows:
    """Place -> the next of `places` above it, or itself."""
    following = np.arange(int(places.max()) + 1)
    for lower, higher in pairwise(places.tolist()):
        following[lower] = higher
    return following


def sigmoid(values: Wide) -> Wide:
    squashed: Wide = 0.5 + 0.5 * np.tanh(0.5 * values)
    return squashed
