"""What the router has to beat: rules that decide without it, fitted on training rows only. Knows nothing of torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ruvllm.learning.data import Array, Rows, Snapshot
from ruvllm.learning.targets import Ints, Pairs, Targets, Wide, best_fixed, weights

LOGISTIC = "logistic-regression"


def fixed_rules(snapshot: Snapshot, targets: Targets) -> dict[str, tuple[int, int]]:
    """always-small and always-big, each at its own best bin on the training rows, and the best (tier, bin) of all."""
    utility = targets.utility[snapshot.train]
    present = np.flatnonzero(snapshot.tier_mask)
    return {
        "always-small": _of_tier(utility, int(present[0])),
        "always-big": _of_tier(utility, int(present[-1])),
        "best-fixed": best_fixed(utility),
    }


def everywhere(pair: tuple[int, int], n: int) -> Pairs:
    """(n, 2): the same decision for every question."""
    return np.tile(np.array(pair, dtype=np.int64), (n, 1))


def logistic(
    x: Array, targets: Targets, train: Rows, snapshot: Snapshot, strength: float, weight_floor: float
) -> Pairs:
    """(n, 2): logistic regression on the normalised features (n, 128), one for the tier and one for the bin.

    It sees what the router sees: the same features, labels and weights, and no session. `strength` is sklearn's C.
    """
    tier = _predict(x, targets.tier, targets.tier_margin, train, strength, weight_floor)
    context = _predict(x, targets.context, targets.context_margin, train, strength, weight_floor)
    return np.stack([tier, context], axis=1)


def random_mean(values: NDArray[np.float32] | Wide, places: NDArray[np.bool_]) -> Wide:
    """(n, 4, 5) -> (n,): the expectation of a uniform choice over the pairs that were run."""
    mean: Wide = np.asarray(values, dtype=np.float64)[:, places].mean(axis=1)
    return mean


def _of_tier(utility: Wide, tier: int) -> tuple[int, int]:
    return tier, int(utility[:, tier].mean(axis=0).argmax())


def _predict(x: Array, labels: Ints, margin: Wide, train: Rows, strength: float, floor: float) -> Ints:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels[train])) == 1:  # sklearn refuses one class
        return np.full(len(x), labels[train[0]])
    model = LogisticRegression(C=strength, max_iter=2000)
    model.fit(x[train].astype(np.float64), labels[train], sample_weight=weights(margin[train], floor))
    predicted: Ints = model.predict(x.astype(np.float64))
    return predicted
