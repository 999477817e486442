"""Refinement from scored answers: decisions follow them, the anchor holds, what comes out is a bundle to be gated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.inference.types import BINS, ROUTED_BINS
from ruvllm.learning.data import load_snapshot
from ruvllm.learning.evaluate import evaluate
from ruvllm.learning.ewc import Ewc, consolidate_bundle, load_ewc
from ruvllm.learning.refine import Recipe, part_of, refine, write_refined
from ruvllm.learning.traffic import Traffic
from ruvllm.router.decision import Allowed
from ruvllm.router.layout import LAYOUT
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime

ALL = Allowed((True,) * 4, (True,) * 5)
RECIPE = Recipe(steps=60, learning_rate=0.01)


@pytest.fixture(scope="module")
def ewc(first_night: Path) -> Ewc:
    state = first_night / "ewc.safetensors"
    state.write_bytes(consolidate_bundle(first_night / "bundle", first_night / "snapshot.npz").state)
    return load_ewc(state)


def answers(folder: Path, good: int, n: int = 240, seed: int = 0) -> Traffic:
    """Answers of the champion, exploring half of the time, rated by users to whom only tier `good` is any good."""
    snapshot, runtime = load_snapshot(folder / "snapshot.npz"), RouterRuntime.load(folder / "bundle")
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(snapshot.keys), n)
    policy = Policy(runtime, [True, True, False, False], 0.5, rng, ROUTED_BINS)
    made = [policy.decide(snapshot.features[row], None, ALL) for row in rows]
    tier = np.array([d.tier for d in made])
    assert snapshot.embedding is not None
    return Traffic(
        interaction=np.arange(1, n + 1), features=snapshot.features[rows], embedding=snapshot.embedding[rows],
        tier=tier, bin=np.array([BINS.index(d.context_bin) for d in made]),
        propensity=np.array([d.propensity for d in made]), quality=np.where(tier == good, 0.95, 0.05),
        latency_s=np.full(n, 0.5), cost=np.array([0.2, 0.4])[tier], session=np.array([""] * n), turn=np.ones(n, int),
        tiers=snapshot.tiers, ladder=snapshot.ladder, encoder_id=snapshot.encoder_id, layout_hash=LAYOUT.hash,
        latency_weight=0.1, cost_weight=0.5, left_out={},
    )  # fmt: skip


def share_of(runtime: RouterRuntime, tier: int, traffic: Traffic) -> float:
    policy = Policy(runtime, [True, True, False, False], 0.0, np.random.default_rng(0), ROUTED_BINS)
    return float(np.mean([policy.decide(row, None, ALL).tier == tier for row in traffic.seen_by(runtime)]))


@pytest.mark.parametrize("good", [0, 1])
def test_feedback_changes_what_the_refined_router_decides(
    first_night: Path, ewc: Ewc, tmp_path: Path, good: int
) -> None:
    """Must-show 4, the night's half: the champion, its answers, their ratings, the refined router's later decisions."""
    traffic = answers(first_night, good)
    refined = refine(first_night / "bundle", traffic, replace(ewc, penalty=0.01), RECIPE)
    write_refined(refined, f"refined-{good}", "2026-01-02T00:00:00+00:00", tmp_path / "bundle")
    before, after = RouterRuntime.load(first_night / "bundle"), RouterRuntime.load(tmp_path / "bundle")
    later = answers(first_night, good, seed=9)
    assert share_of(after, good, later) > 0.9
    assert share_of(before, good, later) < 0.9  # else nothing changed
    assert refined.figures["refined_loss_after"] < refined.figures["refined_loss_before"]  # on answers it never saw
    assert 0.1 < refined.held.mean() < 0.3


def test_the_anchor_holds_the_router_where_the_penalty_is_high(first_night: Path, ewc: Ewc) -> None:
    traffic = answers(first_night, 0, n=100)
    start = {name: np.array(values) for name, values in ewc.anchor.items()}

    def moved(penalty: float) -> float:
        network = refine(first_night / "bundle", traffic, replace(ewc, penalty=penalty), RECIPE).network
        now = dict(network.named_parameters())
        return float(sum((ewc.fisher[n] * (now[n].detach().numpy() - start[n]) ** 2).sum() for n in start))

    assert moved(1000.0) < 0.1 * moved(0.0)


def test_a_refined_bundle_is_evaluated_like_any_other(first_night: Path, ewc: Ewc, tmp_path: Path, quick) -> None:  # type: ignore[no-untyped-def]
    traffic = answers(first_night, 1)
    refined = refine(first_night / "bundle", traffic, ewc, RECIPE)
    write_refined(refined, "refined", "2026-01-02T00:00:00+00:00", tmp_path / "bundle")
    held = part_of(traffic, refined.held)
    report = evaluate(
        load_snapshot(first_night / "snapshot.npz"), tmp_path / "bundle", first_night / "bundle", quick, held
    )
    assert report["golden_max_error"] < 1e-5
    assert report["off_policy"]["n"] == refined.held.sum()
    assert {"fastgrnn", "champion"} <= set(report["policies"])
    consolidated = consolidate_bundle(tmp_path / "bundle", first_night / "snapshot.npz")  # it can be the next champion
    assert consolidated.samples == 30


def test_the_same_answers_give_the_same_router(first_night: Path, ewc: Ewc, tmp_path: Path) -> None:
    traffic = answers(first_night, 1, n=60)
    digests = [
        write_refined(
            refine(first_night / "bundle", traffic, ewc, RECIPE), "r", "2026-01-02T00:00:00+00:00", tmp_path / name
        )
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]


def test_what_cannot_be_refined_is_said(first_night: Path, ewc: Ewc) -> None:
    traffic = answers(first_night, 1, n=60)
    with pytest.raises(LearningError, match="40 scored answers, want at least 50"):
        refine(first_night / "bundle", part_of(traffic, np.arange(60) < 40), ewc)
    with pytest.raises(LearningError, match="want that of first; consolidate"):
        refine(first_night / "bundle", traffic, replace(ewc, origin=replace(ewc.origin, version="older")))
    with pytest.raises(LearningError, match="want most from 1"):
        Recipe(most=0.5)


def test_rare_decisions_weigh_more_but_never_above_the_cut(first_night: Path, ewc: Ewc) -> None:
    traffic = replace(answers(first_night, 1, n=100), propensity=np.where(np.arange(100) < 10, 0.001, 0.9))
    refined = refine(first_night / "bundle", traffic, ewc, replace(RECIPE, steps=1))
    assert refined.figures["refined_cut"] == pytest.approx(0.1)
    weights = np.where((np.arange(100) < 10) & ~refined.held, 10.0, 1 / 0.9)[~refined.held]
    assert refined.figures["refined_effective"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
