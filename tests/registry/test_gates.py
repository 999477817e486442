"""The gate policy on reports: what passes, what fails, what is inconclusive, and which of it blocks on which ladder."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ruvllm.errors import GateError, SettingsError
from ruvllm.registry.gates import GateResult, evaluate_gates, load_policy, require_passed, table_markdown
from ruvllm.registry.package import with_artifact

POLICY = load_policy()


def judge(report: dict[str, Any], ladder: str = "lfm2", has_champion: bool = True) -> dict[str, GateResult]:
    return {r.name: r for r in evaluate_gates(with_artifact(report), POLICY, ladder, has_champion)}


def spread(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}


def test_a_good_report_passes_every_gate_on_both_ladders(report: dict[str, Any]) -> None:
    for ladder in ("lfm2", "packaged"):
        assert {r.name: r.reason for r in judge(report, ladder).values() if r.outcome != "pass"} == {}


@pytest.mark.parametrize(
    ("path", "value", "gate"),
    [
        ("artifact.verified", 0.0, "bundle verifies"),
        ("golden_max_error", 2e-5, "serving equals training"),
        ("n_test", 2, "held-out questions"),
        ("seen.accuracy_tier", 0.94, "tier accuracy on seen questions"),
        ("calibration.ece", 0.2, "calibration error of the confidence"),
        ("forgetting.rate", 0.06, "forgetting"),
        ("policies.fastgrnn.cost", 0.41, "cost as a share of always-big's"),
        ("policies.fastgrnn.regret.latency_s", spread(0.2), "latency regret, s"),
        ("policies.fastgrnn.regret.quality", spread(0.3), "quality regret against always-big"),
        ("policies.fastgrnn.regret.cost", spread(0.1), "cost regret as a share of the oracle's cost"),
        ("policies.fastgrnn.regret.utility", spread(0.5), "not worse than the best fixed choice"),
        ("policies.fastgrnn.regret.utility", spread(0.5), "not worse than the champion"),
        ("paired.logistic-regression.utility", spread(0.3), "better than the simple baselines"),
        ("per_domain.land.utility_regret", 0.6, "no domain is left behind"),
        ("decision_us.p50", 140.0, "decision latency, µs"),
    ],
)  # fmt: skip
def test_a_bad_figure_fails_its_gate_and_stops_the_lfm2_ladder(
    report: dict[str, Any], path: str, value: object, gate: str
) -> None:
    whole = with_artifact(report)
    *parents, last = path.split(".")
    place = whole
    for key in parents:
        place = place[key]
    place[last] = value
    results = evaluate_gates(whole, POLICY, "lfm2", has_champion=True)
    failed = next(r for r in results if r.name == gate)
    assert (failed.outcome, failed.stops) == ("fail", True)
    with pytest.raises(GateError, match=gate):
        require_passed(results, "7")


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.1", True, {"mean": 0.1}])
def test_a_missing_or_meaningless_figure_is_inconclusive_and_blocks(report: dict[str, Any], value: object) -> None:
    report["policies"]["fastgrnn"]["regret"]["utility"] = value
    result = judge(report, "packaged")["not worse than the best fixed choice"]
    assert (result.outcome, result.stops, result.measured) == ("inconclusive", True, None)


def test_an_empty_report_never_passes_a_gate() -> None:
    assert {r.outcome for r in evaluate_gates({}, POLICY, "packaged", has_champion=True)} == {"inconclusive"}


def test_too_few_observations_are_inconclusive(report: dict[str, Any]) -> None:
    report["n_test"] = 20
    result = judge(report)["quality regret against always-big"]
    assert (result.outcome, result.n, result.stops) == ("inconclusive", 20, True)


def test_the_packaged_ladder_reports_what_its_models_cannot_reach_and_says_why(report: dict[str, Any]) -> None:
    report["policies"]["fastgrnn"]["cost"] = 0.7
    result = judge(report, "packaged")["cost as a share of always-big's"]
    assert (result.outcome, result.blocks) == ("fail", False)
    assert "only a factor of two apart" in result.reason


def test_a_wide_interval_is_inconclusive_on_lfm2_and_not_shown_worse_on_packaged(report: dict[str, Any]) -> None:
    report["policies"]["fastgrnn"]["regret"]["utility"] = {"mean": 0.35, "low": 0.0, "high": 0.7}
    name = "not worse than the best fixed choice"
    assert judge(report)[name].outcome == "inconclusive"
    packaged = judge(report, "packaged")[name]
    assert packaged.outcome == "pass"
    assert "not shown to break it" in packaged.reason


def test_a_paired_difference_is_preferred_to_two_separate_intervals(report: dict[str, Any]) -> None:
    report["policies"]["fastgrnn"]["regret"]["utility"] = {"mean": 0.35, "low": 0.0, "high": 0.7}
    report["paired"] = {"best-fixed": {"utility": {"mean": 0.05, "low": 0.02, "high": 0.08}}}
    result = judge(report)["not worse than the best fixed choice"]
    assert (result.outcome, result.measured, result.interval) == ("pass", 0.05, (0.02, 0.08))


def test_the_worst_member_counts_and_is_named(report: dict[str, Any]) -> None:
    report["paired"]["random"]["utility"] = spread(0.4)
    report["paired"]["always-big"]["utility"] = spread(0.5)
    result = judge(report)["better than the simple baselines"]
    assert (result.outcome, result.measured) == ("fail", 0.5)
    assert result.reason.startswith("the worst is always-big")


def test_a_baseline_that_is_missing_is_inconclusive_and_blocks(report: dict[str, Any]) -> None:
    del report["paired"]["random"]
    result = judge(report)["better than the simple baselines"]
    assert (result.outcome, result.stops) == ("inconclusive", True)
    assert "random" in result.reason


def test_a_small_domain_is_inconclusive_unless_a_larger_one_fails(report: dict[str, Any]) -> None:
    report["per_domain"]["sea"] = {"n": 4, "utility_regret": 0.0}
    assert judge(report)["no domain is left behind"].outcome == "inconclusive"
    report["per_domain"]["land"]["utility_regret"] = 0.9
    failed = judge(report)["no domain is left behind"]
    assert (failed.outcome, failed.n) == ("fail", 110)
    assert "land" in failed.reason


def test_without_a_champion_its_gates_report_only(report: dict[str, Any]) -> None:
    del report["policies"]["champion"], report["forgetting"]
    results = judge(report, has_champion=False)
    for name in ("not worse than the champion", "forgetting"):
        assert (results[name].outcome, results[name].blocks) == ("inconclusive", False)
    assert judge(report, has_champion=True)["not worse than the champion"].stops


def test_the_table_marks_what_stops_the_version(report: dict[str, Any]) -> None:
    report["golden_max_error"] = 1.0
    table = table_markdown(list(judge(report).values()))
    assert "| serving equals training | 1 |  | at most 1e-05 |" in table
    assert table.count("**fail**") == 1


def test_a_policy_with_a_misspelt_field_names_the_file(tmp_path: Any) -> None:
    path = tmp_path / "gates.toml"
    path.write_text('[[gate]]\nname = "x"\nmetrik = "y"\n')
    with pytest.raises(SettingsError, match=r"gates\.toml.*metrik"):
        load_policy(path)
