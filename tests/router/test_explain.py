"""Explanations of bundles whose reasons are known: the log-odds by the formula, no place that the router ignores."""

from pathlib import Path

import numpy as np
import pytest

from ruvllm.router.bundle import Bundle, read_bundle
from ruvllm.router.decision import Allowed
from ruvllm.router.explain import explain, explanation_table
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import LAYOUT, N_FEATURES
from ruvllm.router.runtime import RouterRuntime

ALL = Allowed((True,) * 4, (True,) * 5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("explain") / "bundle"
    write_random_bundle(folder, seed=3)
    return read_bundle(folder)


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LAYOUT.low, LAYOUT.high, N_FEATURES).astype(np.float32)


def test_a_place_moves_the_log_odds_by_what_the_router_says_without_it(bundle: Bundle) -> None:
    given, runtime = features(), RouterRuntime(bundle)
    found = explain(bundle, given)
    probs = runtime.decide(given, None, ALL).model_probs
    chosen, rival = (bundle.manifest.tiers.index(name) for name in (found.tier, found.rival))
    assert chosen == probs.argmax()
    assert found.log_odds == pytest.approx(np.log(probs[chosen] / probs[rival]), abs=1e-5)
    assert {part.place for part in found.parts} == {place.name for place in LAYOUT.places}
    for part in found.parts:
        changed = given.copy()
        changed[LAYOUT[part.place]] = bundle.arrays["feature_mean"][LAYOUT[part.place]]
        without = runtime.decide(changed, None, ALL)
        left = np.log(without.model_probs[chosen] / without.model_probs[rival])
        assert part.log_odds == pytest.approx(found.log_odds - left, abs=1e-5)
        assert part.turns == (
            without.model_probs.argmax() != chosen
            or without.context_probs.argmax() != runtime.decide(given, None, ALL).context_probs.argmax()
        )
    sizes = [abs(part.log_odds) for part in found.parts]
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_as_always_says_nothing_and_what_is_not_looked_at_neither(bundle: Bundle) -> None:
    mean = bundle.arrays["feature_mean"].copy()
    assert all(part.log_odds == part.confidence == 0 and not part.turns for part in explain(bundle, mean).parts)
    given = mean.copy()
    given[LAYOUT["memory_coverage"]] += 1
    moved = [part.place for part in explain(bundle, given).parts if part.log_odds]
    assert moved == ["memory_coverage"]


def test_the_groups_are_the_specifications_four_and_hold_every_part(bundle: Bundle) -> None:
    found = explain(bundle, features(1))
    assert list(found.groups) == ["query", "embedding", "search", "system"]
    assert sum(found.groups.values()) == pytest.approx(sum(part.log_odds for part in found.parts))
    groups = {part.place: part.group for part in found.parts}
    assert [groups[name] for name in ("query_type", "l2_norm", "k_retrieved", "hour_cosine")] == list(found.groups)


def test_a_session_and_what_is_allowed_count(bundle: Bundle) -> None:
    hidden = np.full(bundle.manifest.hidden, 0.4, dtype=np.float32)
    given = features(2)
    assert explain(bundle, given, hidden).log_odds != explain(bundle, given).log_odds
    only = explain(bundle, given, allowed=Allowed((True, False, False, False), (True,) * 5))
    assert only.tier == bundle.manifest.tiers[0]
    assert all(part.log_odds == pytest.approx(0, abs=1e-6) for part in only.parts)


def test_the_table_names_tier_value_and_groups(tmp_path: Path, bundle: Bundle) -> None:
    given = features(4)
    given[LAYOUT["language_id"]] = 0
    given[LAYOUT["language_id"].start + 2] = 1
    given[LAYOUT["device_class"]] = 0
    lines = explanation_table(explain(bundle, given), most=100)
    assert lines[0].startswith(f"{explain(bundle, given).tier} with ")
    assert any(line.startswith("| language_id | french 1.00 |") for line in lines)
    assert any(line.startswith("| device_class | unknown |") for line in lines)
    assert lines[-1].startswith("| all of system |")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
