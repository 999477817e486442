"""Thompson sampling in service: its propensities are true, masks hold, and feedback on a stream turns decisions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ruvllm.answering.interactions import Interaction, Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import InputError
from ruvllm.inference.types import BINS
from ruvllm.memory.store import Memory
from ruvllm.router.beliefs import Evidence, activations, believe, read_evidence
from ruvllm.router.decision import Allowed
from ruvllm.router.exploration import PRIORS, LinearPosterior
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import LAYOUT, N_FEATURES
from ruvllm.router.live import PAST_REFRESH_S, Live
from ruvllm.router.manifest import MODEL, Deciding
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings

ALL = Allowed((True,) * 4, (True,) * 5)
NAMES = ("small", "big")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> RouterRuntime:
    folder = tmp_path_factory.mktemp("thompson") / "bundle"
    write_random_bundle(folder, tiers=(*NAMES, "", ""), ladder="test")
    return RouterRuntime.load(folder)


def features(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LAYOUT.low, LAYOUT.high, N_FEATURES).astype(np.float32)


class Knows:
    """An explorer with one posterior for every router."""

    def __init__(self, posterior: LinearPosterior | None) -> None:
        self.found = posterior

    def posterior(self, runtime: RouterRuntime) -> LinearPosterior | None:
        return self.found


def policy(runtime: RouterRuntime, posterior: LinearPosterior | None, epsilon: float = 0.3) -> Policy:
    mask = [bool(name) for name in runtime.tiers]
    return Policy(runtime, mask, epsilon, np.random.default_rng(7), floor=0.0, explorer=Knows(posterior))


def wide(runtime: RouterRuntime) -> LinearPosterior:
    """So unsure that both tiers win often."""
    return LinearPosterior(4, runtime.hidden_size + 1, noise=0.3)


def test_weights_by_the_stated_propensities_are_unbiased_for_every_pair(runtime: RouterRuntime) -> None:
    """Logged propensities are the frequencies: each pair's mean importance weight is 1, tier and bin together."""
    chooser, n = policy(runtime, wide(runtime)), 6000
    weights: Counter[tuple[int, int]] = Counter()
    seen: Counter[tuple[int, int]] = Counter()
    stated: Counter[tuple[int, int]] = Counter()
    for _ in range(n):
        decision = chooser.decide(features(0), None, ALL)
        pair = decision.tier, decision.context_bin
        weights[pair] += 1 / decision.propensity
        stated[pair] += decision.propensity
        seen[pair] += 1
    assert len(seen) == 6  # two tiers, the three bins that are routed
    for pair, count in seen.items():
        share = count / n
        spread = 4 * np.sqrt(share * (1 - share) / n)  # four standard errors of a count
        assert stated[pair] / count == pytest.approx(share, abs=spread + 0.1 * share)  # a count of 201 draws varies
        assert weights[pair] / n == pytest.approx(1.0, abs=spread / share + 0.05)


def test_what_is_too_slow_or_not_allowed_is_never_drawn(runtime: RouterRuntime) -> None:
    chooser = policy(runtime, wide(runtime), epsilon=1.0)
    slow = frozenset({(1, 0), (1, 1), (0, 2)})
    drawn = {
        (d.tier, d.context_bin)
        for d in (chooser.decide(features(0), None, Allowed((True,) * 4, (True,) * 5, slow)) for _ in range(300))
    }
    assert drawn == {(0, BINS[0]), (0, BINS[1]), (1, BINS[2])}
    only = chooser.decide(features(0), None, Allowed((False, True, False, False), (True,) * 5), forced_bin=256)
    assert (only.tier, only.propensity, only.decided_by) == (1, 1.0, "forced")


def test_a_sure_posterior_decides_as_the_router_and_an_unknown_one_leaves_epsilon(runtime: RouterRuntime) -> None:
    sure = LinearPosterior(4, runtime.hidden_size + 1, prior=1e9)
    by_router = policy(runtime, None, epsilon=0.0).decide(features(1), None, ALL)
    drawn = policy(runtime, sure, epsilon=0.0).decide(features(1), None, ALL)
    assert (drawn.tier, drawn.context_bin, drawn.propensity) == (by_router.tier, by_router.context_bin, 1.0)
    unknown = policy(runtime, None, epsilon=0.6)
    chances = {d.propensity for d in (unknown.decide(features(1), None, ALL) for _ in range(100))}
    assert sorted(chances) == pytest.approx([0.1, 0.4 + 0.1])


def test_a_router_without_expected_qualities_is_refused(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle", deciding=Deciding(head=MODEL))
    with pytest.raises(InputError, match="RUVLLM_EXPLORER=epsilon-greedy"):
        policy(RouterRuntime.load(tmp_path / "bundle"), None)


def test_belief_is_ridge_regression_of_what_the_router_misses(runtime: RouterRuntime) -> None:
    rows = np.stack([features(seed) for seed in range(40)])
    outputs = [runtime.decide(row, None, ALL) for row in rows]
    quality = np.full((40, 4), np.nan)
    quality[:25, 1] = np.random.default_rng(0).random(25)
    posterior = believe(runtime, Evidence(rows, quality))
    z = np.stack([np.append(o.hidden, 1.0) for o in outputs[:25]]).astype(np.float64)
    off = quality[:25, 1] - np.array([o.quality[1] for o in outputs[:25]])
    asked = activations(outputs[30].hidden)
    candidates = []
    for prior in PRIORS:  # ridge as extra rows of least squares; which of them, its own test asks
        stacked = np.vstack([z, np.sqrt(prior) * np.eye(z.shape[1])])
        weights = np.linalg.lstsq(stacked, np.concatenate([off, np.zeros(z.shape[1])]), rcond=None)[0]
        candidates.append(float(asked @ weights))
    mean = posterior.mean(asked)
    assert mean[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    assert min(abs(mean[1] - each) for each in candidates) < 1e-5
    assert mean[1] != 0
    assert posterior.deviation(asked)[1] < posterior.deviation(asked)[0]  # what was tried is surer


ROW = {
    "cycle_id": None, "session_id": None, "turn": 1, "history": "[]", "answer": "yes", "gold": None, "domain": "",
    "temperature": 0.0, "top_p": 1.0, "ladder": "test", "layout_hash": LAYOUT.hash, "retrieved": [],
    "similarities": [], "used": [], "writer": "ann", "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1,
    "cost": 0.0, "stage_ms": "{}", "total_ms": 1.0, "degraded": [],
}  # fmt: skip


def test_feedback_on_a_stream_changes_later_decisions(
    runtime: RouterRuntime, database: Database, settings: Settings
) -> None:
    """Must-show 4: users rate what they get, and what is asked after the next refreshing is decided otherwise."""
    clock = [0.0]
    live, store = Live(database, clock=lambda: clock[0], tiers=NAMES), Interactions(database)
    memory = Memory(database, EmbeddingAdapter(HashingEncoder()), settings)
    chooser = Policy(
        runtime, [True, True, False, False], 0.1, np.random.default_rng(0), floor=0.0, explorer=live.beliefs
    )
    favourite = int(np.argmax(runtime.decide(features(0), None, ALL).utility[:2]))

    def asked(name: str, n: int) -> float:
        """The favourite's share of `n` questions, each answered, stored and rated: the other tier is the good one."""
        counts = 0
        for number in range(n):
            row = features(number % 5)
            decision = chooser.decide(row, None, ALL)
            counts += decision.tier == favourite
            fields = {
                "request_id": f"{name}-{number}", "question": f"{name} {number}?", "features": row.tolist(),
                "tier": NAMES[decision.tier], "context_bin": decision.context_bin, "decided_by": decision.decided_by,
                "confidence": decision.confidence, "propensity": decision.propensity,
                "router_version": decision.router_version,
            }  # fmt: skip
            store.record(Interaction({**ROW, **fields}))
            store.feedback(f"{name}-{number}", 1 if decision.tier == favourite else 5, None, None, "ann")
        store.settle(memory, 10 * n)
        clock[0] += PAST_REFRESH_S
        live.refresh_if_old()
        return counts / n

    before = asked("first", 30)  # nothing is known: epsilon-greedy
    asked("second", 30)
    after = asked("third", 30)
    assert (before > 0.7, after < 0.3) == (True, True), (before, after)
    learnt = read_evidence(database, runtime, NAMES)
    assert np.isfinite(learnt.quality).sum() == 90
