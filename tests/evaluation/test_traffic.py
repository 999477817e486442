"""Stored answers as an off-policy log: what is read and left out, and that the report holds the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ruvllm.answering.interactions import Interaction, Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import BundleError, LearningError
from ruvllm.evaluation.table import off_policy_line
from ruvllm.inference.types import BINS, ROUTED_BINS
from ruvllm.learning.off_policy import off_policy_report
from ruvllm.learning.traffic import Traffic, load_traffic, read_traffic, save_traffic
from ruvllm.registry.gates import evaluate_gates, load_policy
from ruvllm.router.decision import Allowed
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import LAYOUT, N_FEATURES
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings

NAMES = ("small", "big")
ALL = Allowed((True,) * 4, (True,) * 5)
MASK = (True, True, False, False)
GATE = "off-policy estimate"


def router(folder: Path, seed: int, version: str) -> RouterRuntime:
    write_random_bundle(folder, version, "test", (*NAMES, "", ""), seed, encoder_id="test-encoder")
    return RouterRuntime.load(folder)


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> tuple[RouterRuntime, RouterRuntime]:
    folder = tmp_path_factory.mktemp("routers")
    return router(folder / "a", 1, "a"), router(folder / "b", 2, "b")


class World:
    """Questions of which every outcome is known: where one feature is high the big tier is right, else the small."""

    def __init__(self, n: int = 1500, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.features = rng.uniform(LAYOUT.low, LAYOUT.high, (n, N_FEATURES)).astype(np.float32)
        self.features[:, LAYOUT["principal_components"]] = 0
        self.features[:, LAYOUT["cluster_assignment"]] = 0
        hard = self.features[:, LAYOUT["memory_coverage"].start] > 0.5
        self.quality = np.stack([np.where(hard, 0.1, 0.9), np.where(hard, 0.8, 0.5)], axis=1)  # (n, 2)
        self.cost = np.array([0.2, 0.6])

    def utility(self, tier: int) -> np.ndarray:
        return 1 + 4 * self.quality[:, tier] - 0.1 * 0.5 - 0.5 * self.cost[tier]

    def value(self, runtime: RouterRuntime) -> float:
        policy = Policy(runtime, MASK, 0.0, np.random.default_rng(0), ROUTED_BINS)
        tiers = [policy.decide(row, None, ALL).tier for row in self.features]
        return float(np.mean([self.utility(tier)[row] for row, tier in enumerate(tiers)]))

    def log(self, logging: RouterRuntime | None, seed: int, n: int = 600) -> Traffic:
        """`n` answers of a policy that explores half of the time, or of the cold-start rule."""
        rng = np.random.default_rng(seed)
        policy = Policy(logging, MASK, 0.5, rng, ROUTED_BINS)
        rows = rng.integers(0, len(self.features), n)
        made = [policy.decide(self.features[row], None, ALL) for row in rows]
        tier = np.array([d.tier for d in made], dtype=np.int64)
        return Traffic(
            interaction=np.arange(n), features=self.features[rows], embedding=np.zeros((n, 4), dtype=np.float32),
            tier=tier, bin=np.array([BINS.index(d.context_bin) for d in made]),
            propensity=np.array([d.propensity for d in made]), quality=self.quality[rows, tier],
            latency_s=np.full(n, 0.5), cost=self.cost[tier], session=np.array([""] * n), turn=np.ones(n, dtype=int),
            tiers=(*NAMES, "", ""), ladder="test", encoder_id="test-encoder", layout_hash=LAYOUT.hash,
            latency_weight=0.1, cost_weight=0.5, left_out={"forced": 3},
        )  # fmt: skip


def test_the_report_holds_the_truth_of_both_routers_and_of_their_difference(routers) -> None:  # type: ignore[no-untyped-def]
    world, (candidate, champion) = World(), routers
    truth = {"candidate": world.value(candidate), "champion": world.value(champion)}
    truth["difference"] = truth["candidate"] - truth["champion"]
    assert abs(truth["difference"]) > 0.1  # the routers differ, or nothing would be tested
    held = dict.fromkeys(truth, 0)
    for seed in range(12):
        report = off_policy_report(world.log(champion, seed), candidate, champion, seed, resamples=200)
        assert report["n"] == 600
        for name, value in truth.items():
            held[name] += report[name]["low"] <= value <= report[name]["high"]
            assert report[name]["high"] - report[name]["low"] < 1.5  # it says something
    assert min(held.values()) >= 10, held
    assert json.loads(json.dumps(report)) == report  # it is part of report.json
    line = off_policy_line(report)
    assert line.startswith("On 600 stored answers")
    assert f"candidate {report['candidate']['mean']:.3f} [" in line
    assert f"difference {report['difference']['mean']:.3f} [" in line


def test_the_cold_start_rule_is_a_log_too_and_the_gate_reads_it(routers) -> None:  # type: ignore[no-untyped-def]
    world, (candidate, champion) = World(), routers
    if world.value(candidate) < world.value(champion):
        candidate, champion = champion, candidate
    report = {"off_policy": off_policy_report(world.log(None, 0, n=1500), candidate, champion)}
    (better,) = [g for g in evaluate_gates(report, load_policy(), "other", True) if g.name == GATE]
    assert (better.outcome, better.n) == ("pass", 1500)
    assert report["off_policy"]["verdict"]["accepted"]
    report = {"off_policy": off_policy_report(world.log(None, 0, n=1500), champion, candidate)}
    (worse,) = [g for g in evaluate_gates(report, load_policy(), "other", True) if g.name == GATE]
    assert worse.measured is not None
    assert worse.measured < 0
    assert not report["off_policy"]["verdict"]["accepted"]


def test_below_its_minimum_the_gate_is_inconclusive(routers) -> None:  # type: ignore[no-untyped-def]
    world, (candidate, champion) = World(), routers
    few = off_policy_report(world.log(champion, 0, n=60), candidate, champion)
    none = off_policy_report(world.log(champion, 0, n=20), candidate, champion)
    assert "candidate" not in none  # too few effective rows to speak of
    assert "too few" in off_policy_line(none)
    for report in (few, none):
        (gate,) = [g for g in evaluate_gates({"off_policy": report}, load_policy(), "other", True) if g.name == GATE]
        assert gate.outcome == "inconclusive"


def test_without_a_champion_or_without_answers_it_says_what_it_has(routers) -> None:  # type: ignore[no-untyped-def]
    world, (candidate, champion) = World(), routers
    alone = off_policy_report(world.log(None, 0), candidate, None, resamples=100)
    assert {"candidate", "logged", "n"} <= set(alone)
    assert "champion" not in alone
    empty = off_policy_report(world.log(None, 0, n=0), candidate, champion)
    assert empty == {"n": 0, "left_out": {"forced": 3}}


def test_a_router_of_another_ladder_is_refused(routers) -> None:  # type: ignore[no-untyped-def]
    other = replace(World().log(None, 0, n=5), ladder="other")
    with pytest.raises(BundleError, match="trained for ladder test"):
        off_policy_report(other, routers[0], None)


ROW = {
    "cycle_id": None, "session_id": None, "turn": 1, "history": "[]", "answer": "Paris", "gold": ["Paris"],
    "domain": "", "temperature": 0.0, "top_p": 1.0, "confidence": None, "router_version": "a", "ladder": "test",
    "layout_hash": LAYOUT.hash, "features": [0.25] * N_FEATURES, "retrieved": [], "similarities": [], "used": [],
    "writer": "", "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1, "cost": 0.5,
    "stage_ms": '{"generate": 250.0}', "total_ms": 400.0, "tier": "big", "context_bin": 512, "decided_by": "champion",
    "propensity": 0.25, "degraded": [],
}  # fmt: skip


@pytest.fixture
def stored(database: Database) -> Database:
    store = Interactions(database)
    rows = [
        {}, {"decided_by": "forced", "propensity": 1.0}, {"decided_by": "cache", "propensity": 1.0},
        {"degraded": ["tier:small", "bin:1024"], "decided_by": "explore"},  # small with 1024 was decided on
        {"decided_by": "cascade", "degraded": ["cascade:small"]}, {"decided_by": "cascade"},
        {"layout_hash": "0" * 64}, {"ladder": "other"},
    ]  # fmt: skip
    for number, more in enumerate(rows):
        store.record(Interaction({**ROW, "request_id": f"r{number}", "question": f"question {number}?", **more}))
    store.record(Interaction({**ROW, "request_id": "unscored", "question": "what?"}))
    with database.transaction() as connection:
        connection.execute(
            "UPDATE serving.interactions SET quality = 0.75, quality_source = 'gold' WHERE request_id <> 'unscored'"
        )
    return database


@pytest.fixture
def read(stored: Database, settings: Settings) -> Traffic:
    ladder = SimpleNamespace(name="test", names=NAMES)
    return read_traffic(settings, stored, ladder, EmbeddingAdapter(HashingEncoder()))  # type: ignore[arg-type]


def test_the_decided_pair_is_read_and_what_no_policy_drew_is_counted(read: Traffic) -> None:
    pairs = list(zip(read.tier.tolist(), read.bin.tolist(), strict=True))
    assert pairs == [(1, 1), (0, 2), (0, 1)]
    assert read.left_out == {"cache": 1, "cascade, first tier unknown": 1, "forced": 1}
    assert read.propensity.tolist() == [0.25] * 3
    assert read.utility == pytest.approx(np.full(3, 1 + 4 * 0.75 - 0.1 * 0.25 - 0.5 * 0.5))
    assert np.linalg.norm(read.embedding, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_the_file_says_the_same_and_an_altered_one_is_refused(read: Traffic, tmp_path: Path) -> None:
    path = tmp_path / "traffic.npz"
    digest = save_traffic(read, path)
    again = load_traffic(path)
    assert save_traffic(again, tmp_path / "copy.npz") == digest
    assert (again.left_out, again.tiers, again.interaction.tolist()) == (
        read.left_out, read.tiers, read.interaction.tolist(),
    )  # fmt: skip
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LearningError, match="missing, truncated or altered"):
        load_traffic(path)
    save_traffic(replace(read, layout_hash="1" * 64), path)
    with pytest.raises(LearningError, match="feature layout 111"):
        load_traffic(path)
