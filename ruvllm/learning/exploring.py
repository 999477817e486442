"""What exploring brings: a snapshot's held-out questions played as a stream, each showing the outcome of one tier only.

Knows nothing of serving. The bin is the router's own; the tier is chosen by what is expected of each, the router's
estimate plus what was learnt on the stream of its residuals (router/exploration.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.learning.data import Snapshot, features_for
from ruvllm.learning.targets import make_targets
from ruvllm.router.batch import decide_batch
from ruvllm.router.beliefs import activations
from ruvllm.router.decision import Allowed
from ruvllm.router.exploration import Tried, epsilon_greedy, fit_posterior, thompson
from ruvllm.router.runtime import RouterRuntime

Values = NDArray[np.float64]

STILL, GREEDY, EPSILON, THOMPSON = "learns nothing", "learns, no exploring", "epsilon-greedy", "thompson"
WAYS = (STILL, GREEDY, EPSILON, THOMPSON)
_REFITTED = 25  # outcomes after which prior and noise are fitted anew
_SPAN = 4.0  # utility on 1 to 5 of quality in [0, 1]


def stream_regret(runtime: RouterRuntime, snapshot: Snapshot, way: str, seed: int, epsilon: float = 0.1) -> Values:
    """(m,): regret against the best tier at the router's bin, of the held-out questions in the order of the seed.

    Raises:
        LearningError: no such way, or no question is held out.
    """
    if way not in WAYS:
        raise LearningError(f"exploring: way {way!r}, want one of {', '.join(WAYS)}")
    if not len(snapshot.test):
        raise LearningError("exploring: no held-out question, want at least one; collect more (ruvllm cycle)")
    rng = np.random.default_rng(seed)
    rows = rng.permutation(snapshot.test)
    bins = Allowed((True,) * 4, tuple(snapshot.bin_mask.tolist()))
    decided = decide_batch(runtime, features_for(snapshot, runtime.transforms)[rows], bins)
    at = np.arange(len(rows))
    utility = make_targets(snapshot).utility[rows][at, :, decided.bin]  # (m, 4)
    quality = snapshot.quality[rows][at, :, decided.bin].astype(np.float64)
    expected = decided.quality + runtime.levels(None).T[decided.bin] / _SPAN  # in units of quality
    stream = _Stream(activations(decided.hidden), expected, quality - decided.quality, snapshot.tier_mask.tolist())
    tiers = stream.play(way, epsilon, rng)
    return np.asarray(utility.max(axis=1) - utility[at, tiers], dtype=np.float64)


class _Stream:
    """z (m, H + 1), expected (m, 4) and off (m, 4): what each tier's outcome would show of the residual."""

    def __init__(self, z: Values, expected: Values, off: Values, mask: list[bool]) -> None:
        self.z, self.expected, self.off, self.mask = z, expected, off, mask
        self.shown = np.full(off.shape, np.nan)
        self.posterior = fit_posterior(z[:0], off[:0])

    def play(self, way: str, epsilon: float, rng: np.random.Generator) -> NDArray[np.int64]:
        """(m,) the tier of each."""
        tiers = np.zeros(len(self.z), dtype=np.int64)
        for step in range(len(self.z)):
            tiers[step] = self._tried(way, step, epsilon, rng).place
            if way != STILL:
                self._learn(step, int(tiers[step]))
        return tiers

    def _tried(self, way: str, step: int, epsilon: float, rng: np.random.Generator) -> Tried:
        z, expected = self.z[step], self.expected[step]
        if way == THOMPSON:
            return thompson(self.posterior, z, self.mask, rng, expected=expected)
        learnt = expected if way == STILL else expected + self.posterior.mean(z)
        return epsilon_greedy(learnt, self.mask, epsilon if way == EPSILON else 0.0, rng)

    def _learn(self, step: int, tier: int) -> None:
        self.shown[step, tier] = self.off[step, tier]
        if (step + 1) % _REFITTED:
            self.posterior.learn(tier, self.z[step], float(self.off[step, tier]))
        else:
            self.posterior = fit_posterior(self.z[: step + 1], self.shown[: step + 1])
