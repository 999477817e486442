"""Importance against routers whose reasons are known, flags against features made to be caught."""

import numpy as np
import pytest

from ruvllm.learning.importance import flags, place_importance, summary, table
from ruvllm.router.layout import LAYOUT, N_FEATURES

N = 200
TELLS = LAYOUT["memory_coverage"].start
ONE_HOT = LAYOUT["query_type"]


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (N, N_FEATURES)).astype(np.float32)


def reader(column: int):
    """A router that reads one feature."""
    return lambda features: np.stack([(features[:, column] > 0.5).astype(np.int64), np.zeros(len(features), int)], 1)


def score_against(features: np.ndarray, column: int):
    right = (features[:, column] > 0.5).astype(np.int64)
    return lambda pairs: (pairs[:, 0] == right).astype(float)


def test_only_the_place_that_the_router_reads_is_worth_anything():
    features = rows()
    found = place_importance(features, reader(TELLS), score_against(features, TELLS), seed=1)
    assert set(found) == {place.name for place in LAYOUT.places}
    assert found["memory_coverage"]["lost"] == pytest.approx(0.5, abs=0.1)  # a coin instead of certainty
    assert found["memory_coverage"]["lost"] == pytest.approx(found["memory_coverage"]["changed"])
    assert all(v == {"lost": 0, "error": 0, "changed": 0} for k, v in found.items() if k != "memory_coverage")


def test_the_features_of_a_place_move_together():
    """A router that asks whether a one-hot is one sees no broken one."""
    features = rows()
    features[:, ONE_HOT] = np.eye(6)[np.random.default_rng(3).integers(6, size=N)]
    seen: list[np.ndarray] = []

    def decide(given: np.ndarray) -> np.ndarray:
        seen.append(given[:, ONE_HOT].sum(axis=1))
        return np.zeros((N, 2), dtype=np.int64)

    place_importance(features, decide, lambda pairs: np.zeros(len(pairs)), seed=0)
    np.testing.assert_allclose(np.stack(seen), 1)


def test_a_place_read_the_wrong_way_round_is_worth_less_than_nothing():
    features = rows()
    found = place_importance(features, reader(TELLS), lambda p: -score_against(features, TELLS)(p), seed=1)
    assert found["memory_coverage"]["lost"] < -0.3


def test_the_same_seed_gives_the_same_figures():
    features = rows()
    decide, score = reader(TELLS), score_against(features, TELLS)
    first, again, other = (place_importance(features, decide, score, seed) for seed in (4, 4, 5))
    assert first == again
    assert first != other


def named(found, kind: str) -> set[str]:
    return {flag.feature for flag in found if flag.kind == kind}


def test_constant_and_leaking_features_are_flagged_and_honest_ones_are_not():
    features, label = rows(), np.arange(N) % 2
    split = np.arange(N) >= N // 2
    features[:, 7] = 0.25
    features[:, 9] = 0.8 - 0.5 * label  # reversed: still tells
    features[:, 11] = np.arange(N) / N  # rises with the time of collection
    features[:, 13] = 0.3 * label + features[:, 13] * 0.7  # a good feature, not a perfect one
    found = flags(features, {"label": label, "split": split})
    assert named(found, "constant") == {LAYOUT.names[7]}
    assert named(found, "label") == {LAYOUT.names[9]}
    assert named(found, "split") == {LAYOUT.names[11]}


def test_ties_count_half():
    """A feature of two values that agrees with nothing has an area of one half, whichever way its rows are sorted."""
    features = np.zeros((N, N_FEATURES), dtype=np.float32)
    features[N // 2 :] = 1
    assert not [f for f in flags(features, {"label": np.arange(N) % 2}) if f.kind == "label"]


def test_a_class_of_few_rows_is_no_evidence():
    features, label = rows(), np.arange(N) < 5
    features[:, 9] = label
    assert not named(flags(features, {"label": label}), "label")


def test_the_table_ranks_places_and_names_what_is_flagged():
    features = rows()
    features[:, LAYOUT["battery_level"]] = 1.0
    told = (np.arange(N) % 2).astype(int)
    features[:, LAYOUT["queue_depth"]] = told[:, None] * 0.5
    places = place_importance(features, reader(TELLS), score_against(features, TELLS), seed=1)
    lines = table(summary(places, flags(features, {"label": told})), most=3)
    assert lines[2].startswith("| memory_coverage | +0.")
    assert len([line for line in lines if line.startswith("| ")]) == 1 + 3
    assert f"{len(places) - 1} of {len(places)} places change no decision on the held-out questions." in lines
    assert "Constant, 1 of the 128: battery_level." in lines
    assert any(line.startswith("**queue_depth** alone tells label ") for line in lines)
