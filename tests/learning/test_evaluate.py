"""The report: the router as it serves beside every baseline and the champion, on the same questions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ruvllm.errors import BundleError, LearningError
from ruvllm.evaluation.table import report_markdown
from ruvllm.learning import evaluate as evaluation
from ruvllm.learning.baselines import fixed_rules
from ruvllm.learning.data import load_snapshot
from ruvllm.learning.evaluate import evaluate
from ruvllm.learning.fake import fake_arrays, second_night, write_fake_snapshot
from ruvllm.learning.report import Settings, importance_report
from ruvllm.learning.routing import route
from ruvllm.learning.targets import make_targets, take
from ruvllm.registry.gates import evaluate_gates, load_policy
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import LAYOUT
from ruvllm.router.runtime import RouterRuntime

POLICIES = {"oracle", "fastgrnn", "best-fixed", "always-small", "always-big", "random", "logistic-regression"}


@pytest.fixture(scope="module")
def report(first_night: Path, quick):
    return evaluate(load_snapshot(first_night / "snapshot.npz"), first_night / "bundle", None, quick)


def test_every_policy_is_judged_on_the_held_out_questions(report):
    assert set(report["policies"]) == POLICIES
    assert (report["n_train"], report["n_test"], report["seen"]["n"]) == (30, 12, 30)
    for policy in report["policies"].values():
        assert {"utility", "quality", "latency_s", "cost", "regret", "accuracy_tier", "accuracy_pair"} <= set(policy)
        assert 1 <= policy["quality"] <= 5
        assert policy["regret"]["utility"]["mean"] >= 0
    oracle = report["policies"]["oracle"]
    assert (oracle["accuracy_tier"], oracle["accuracy_pair"], oracle["accuracy_near"]) == (1, 1, 1)
    assert report["policies"]["always-big"]["regret"]["quality"]["mean"] == 0  # the baseline of specification 8.3


def test_importance_is_of_the_router_that_serves(report):
    places = report["importance"]["places"]
    assert max(places, key=lambda name: places[name]["lost"]) in ("memory_coverage", "token_count")  # they decide here
    assert places["cluster_assignment"]["changed"] >= 0  # permuted as this router's transforms gave them
    assert json.loads(json.dumps(report["importance"])) == report["importance"]


def test_a_leaking_feature_is_named_in_the_report(tmp_path: Path, quick):
    arrays = fake_arrays(60, 40)
    arrays["features"][:, LAYOUT["queue_depth"]] = arrays["split"][:, None]
    arrays["features"][:, LAYOUT["battery_level"]] = 1
    snapshot = write_fake_snapshot(tmp_path / "snapshot.npz", arrays)
    flags = importance_report(
        snapshot,
        make_targets(snapshot),
        snapshot.features,
        lambda features: np.zeros((len(features), 2), dtype=np.int64),
        Settings(0.25, 10, 0),
    )["flags"]
    assert ("queue_depth", "split") in [(flag["feature"], flag["kind"]) for flag in flags]
    assert ("battery_level", "constant") in [(flag["feature"], flag["kind"]) for flag in flags]
    assert ("memory_coverage", "label") in [(flag["feature"], flag["kind"]) for flag in flags]  # as it was made


def test_figures_are_those_of_the_outcomes(report, first_night: Path):
    snapshot = load_snapshot(first_night / "snapshot.npz")
    targets, rows = make_targets(snapshot), snapshot.test
    fixed = fixed_rules(snapshot, targets)["best-fixed"]
    wanted = targets.utility[rows][:, fixed[0], fixed[1]].mean()
    assert report["policies"]["best-fixed"]["utility"] == pytest.approx(wanted)
    everything = targets.utility[rows][:, :2, :3]
    assert report["policies"]["random"]["utility"] == pytest.approx(everything.mean())
    best = everything.max(axis=(1, 2)).mean()
    assert report["policies"]["random"]["regret"]["utility"]["mean"] == pytest.approx(best - everything.mean())


def test_the_serving_runtime_is_what_is_judged_and_equals_torch(report, first_night: Path):
    snapshot = load_snapshot(first_night / "snapshot.npz")
    routed = route(RouterRuntime.load(first_night / "bundle"), snapshot, snapshot.test)
    wanted = take(make_targets(snapshot).utility[snapshot.test], routed.pairs).mean()
    assert report["policies"]["fastgrnn"]["utility"] == pytest.approx(wanted)
    assert (snapshot.turn > 1).any()
    assert report["golden_max_error"] < 1e-5
    assert report["golden_n"] == 42


def test_with_one_night_forgetting_is_inconclusive(report):
    assert report["forgetting"] == {
        "rate": None, "accuracy_then": None, "accuracy_now": None, "n": 0, "n_nights": 0
    }  # fmt: skip


def test_a_champion_is_judged_on_the_same_questions_and_forgetting_is_measured(
    first_night: Path, quick, tmp_path: Path
):
    arrays = second_night(fake_arrays(30, 12), fake_arrays(15, 6, seed=5))
    path = tmp_path / "s.npz"
    snapshot = write_fake_snapshot(path, arrays)
    found = evaluate(snapshot, first_night / "bundle", first_night / "bundle", quick)
    assert found["policies"]["champion"] == found["policies"]["fastgrnn"]
    assert found["paired"]["champion"]["utility"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["forgetting"]["rate"]["mean"] == 0
    assert (found["forgetting"]["n"], found["forgetting"]["n_nights"]) == (42, 1)
    assert found["changes"] == {"n": found["n_test"], "tier": 0, "pair": 0, "examples": []}
    assert sum(tenth["n"] for tenth in found["calibration"]["bins"]) == found["n_test"]


def test_changed_decisions_are_counted_and_the_largest_difference_is_the_first_example(
    first_night: Path, quick, tmp_path: Path
):
    arrays = second_night(fake_arrays(30, 12), fake_arrays(15, 6, seed=5))
    snapshot = write_fake_snapshot(tmp_path / "s.npz", arrays)
    write_random_bundle(tmp_path / "other", ladder=snapshot.ladder, tiers=tuple(snapshot.tiers), seed=9)
    found = evaluate(snapshot, first_night / "bundle", tmp_path / "other", quick)
    changes = found["changes"]
    gained = [abs(example["gained"]) for example in changes["examples"]]
    assert 0 < len(gained) <= changes["pair"]
    assert changes["tier"] <= changes["pair"] <= changes["n"]
    assert gained == sorted(gained, reverse=True)
    assert {example["key"] for example in changes["examples"]} <= set(snapshot.keys[snapshot.test].tolist())


def test_a_champion_of_another_ladder_is_left_out_and_named(first_night: Path, quick, tmp_path: Path):
    write_random_bundle(tmp_path / "other", ladder="lfm2", tiers=("a", "b", "c", "d"))
    found = evaluate(load_snapshot(first_night / "snapshot.npz"), first_night / "bundle", tmp_path / "other", quick)
    assert "champion" not in found["policies"]
    assert any("the champion was not compared" in warning for warning in found["warnings"])


def test_gates_and_the_readers_table_find_their_figures(report):
    gates = {gate.name: gate for gate in evaluate_gates(report, load_policy(), "packaged", has_champion=False)}
    missing = {name for name, gate in gates.items() if gate.measured is None}
    # the first is judged with the bundle at hand, the last two are measured apart from report.json
    others = {"off-policy estimate", "decision latency, µs"}
    assert missing == {"bundle verifies", "not worse than the champion", "forgetting", *others}
    assert "logistic-regression" in report_markdown(report)


def test_the_command_writes_the_same_report_and_times_apart(first_night: Path, report, quick, tmp_path: Path):
    import yaml

    (tmp_path / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(quick.as_dict()))))
    names = ("out", "metrics", "timings")
    evaluation.main([
        "--snapshot", str(first_night / "snapshot.npz"), "--bundle", str(first_night / "bundle"),
        "--params", str(tmp_path / "params.yaml"), *(x for n in names for x in (f"--{n}", str(tmp_path / n))),
    ])  # fmt: skip
    assert json.loads((tmp_path / "out").read_text()) == json.loads(json.dumps(report))
    times = json.loads((tmp_path / "timings").read_text())["decision_us"]
    assert 0 < times["p50"] <= times["p99"]
    assert "decision_us" not in report


def test_no_held_out_question_and_no_whole_bundle_are_errors(first_night: Path, quick, tmp_path: Path):
    snapshot = load_snapshot(first_night / "snapshot.npz")
    with pytest.raises(LearningError, match="no held-out question"):
        evaluate(replace(snapshot, split=np.zeros_like(snapshot.split)), first_night / "bundle", None, quick)
    with pytest.raises(BundleError):
        evaluate(snapshot, tmp_path / "nowhere", None, quick)
