"""Routes a snapshot's questions with a promoted bundle, through the code that serves. Knows nothing of torch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ruvllm.inference.types import BINS
from ruvllm.learning.data import Array, Rows, Snapshot, features_for
from ruvllm.learning.sessions import sessions_of
from ruvllm.learning.targets import Pairs, Wide
from ruvllm.router.decision import Allowed, Decision
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime


@dataclass(frozen=True, eq=False)
class Routed:
    """Decisions without exploration, in the order of the rows asked for."""

    pairs: Pairs  # (m, 2) as served, the fallback included
    heads: Pairs  # (m, 2) the heads' own choice, which the confidence speaks of
    model_probs: Wide  # (m, 4)
    context_probs: Wide  # (m, 5)
    confidence: Wide  # (m,)
    fell_back: float  # share


def route(runtime: RouterRuntime, snapshot: Snapshot, rows: Rows, features: Array | None = None) -> Routed:
    """Every row with the hidden state of its session's earlier rows; only bins that were run may be chosen.

    `features` (n, 128) of all rows stand for the snapshot's own, to ask what the router would do if they were others.
    """
    if features is None:
        features = features_for(snapshot, runtime.transforms)
    bins = [BINS[place] for place in np.flatnonzero(snapshot.bin_mask)]
    policy = Policy(runtime, snapshot.tier_mask.tolist(), 0.0, np.random.default_rng(0), bins)
    made: dict[int, Decision] = {}
    for members in sessions_of(snapshot.session, snapshot.turn, rows):
        hidden = None
        for row in members:
            made[row] = policy.decide(features[row], hidden, Allowed((True,) * 4, (True,) * 5))
            hidden = made[row].hidden
    return _routed([made[row] for row in rows.tolist()])


def _routed(decisions: list[Decision]) -> Routed:
    model, context = (np.array([getattr(d, name) for d in decisions]) for name in ("model_probs", "context_probs"))
    return Routed(
        pairs=np.array([(d.tier, BINS.index(d.context_bin)) for d in decisions], dtype=np.int64),
        heads=np.stack([model.argmax(axis=1), context.argmax(axis=1)], axis=1),
        model_probs=model,
        context_probs=context,
        confidence=np.array([d.confidence for d in decisions], dtype=np.float64),
        fell_back=float(np.mean([d.decided_by == "fallback" for d in decisions])),
    )


def decision_times(runtime: RouterRuntime, features: Array, calls: int) -> dict[str, float]:
    """Microseconds of one `RouterRuntime.decide` on a first turn: p50, p99 and the number of calls."""
    allowed, spent = Allowed((True,) * 4, (True,) * 5), np.zeros(calls)
    for call in range(calls):
        before = time.perf_counter_ns()
        runtime.decide(features[call % len(features)], None, allowed)
        spent[call] = (time.perf_counter_ns() - before) / 1000
    p50, p99 = np.quantile(spent, (0.5, 0.99))
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "n": calls}
