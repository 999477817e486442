"""The curve is drawn from made pairs, and what it recommends keeps conflicting ones apart."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ruvllm.embedding import open_embedder
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.memory.likeness.calibrate import Calibration, Curve, Point, calibrate
from ruvllm.memory.likeness.pairs import pairs, passages
from ruvllm.memory.likeness.thresholds import BY_ENCODER, STRICT, thresholds
from ruvllm.settings import load_settings


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(open_embedder(load_settings({})))


def test_the_table_of_thresholds_is_what_the_curve_recommends(calibration: Calibration) -> None:
    assert BY_ENCODER[calibration.encoder].paraphrase == pytest.approx(calibration.cosine.recommended, abs=0.011)
    at = {point.threshold: point for point in calibration.cosine.points}[BY_ENCODER[calibration.encoder].paraphrase]
    assert at.conflicting_checked == 0
    assert at.equivalent_checked >= calibration.cosine.equivalents * 0.5


def test_nearness_alone_would_merge_conflicting_facts(calibration: Calibration) -> None:
    """Why the wording has the last word: no threshold merges half of the paraphrases and no conflict."""
    for point in calibration.cosine.points:
        assert point.conflicting > 0 or point.equivalent < calibration.cosine.equivalents / 2
    assert all(point.conflicting_checked == 0 for point in calibration.jaccard.points)


def test_a_higher_threshold_merges_no_more(calibration: Calibration) -> None:
    for curve in (calibration.cosine, calibration.jaccard):
        for low, high in pairwise(curve.points):
            assert high.equivalent_checked <= low.equivalent_checked
            assert high.conflicting_checked <= low.conflicting_checked


def test_the_table_shows_every_point_and_the_advice(calibration: Calibration) -> None:
    table = calibration.as_table()
    assert table.count("\n|") >= len(calibration.cosine.points) + len(calibration.jaccard.points)
    assert f"cosine {calibration.cosine.recommended:.2f}" in table


@pytest.mark.parametrize(
    ("conflicting", "wanted"), [((2, 1, 0), 0.94), ((0, 0, 0), 0.82), ((1, 1, 1), 1.01), ((1, 0, 1), 1.01)]
)
def test_the_recommendation(conflicting: tuple[int, ...], wanted: float) -> None:
    points = tuple(Point(t, 1, 1, 1, n) for t, n in zip((0.80, 0.86, 0.92), conflicting, strict=True))
    assert Curve("cosine", 1, 2, points).recommended == pytest.approx(wanted)


def test_another_encoder_is_strict_until_it_is_calibrated() -> None:
    adapter = EmbeddingAdapter(HashingEncoder(id="new"))
    assert thresholds("new", load_settings({})) == STRICT
    assert thresholds("new", load_settings({}, paraphrase_cosine=0.7)).paraphrase == 0.7
    seen: list[int] = []
    assert calibrate(adapter, lambda done, total, note="": seen.append(done)).in_use == STRICT.paraphrase
    assert seen[-1] == max(seen) > 100


def test_made_pairs_are_what_they_say() -> None:
    made = pairs()
    assert {pair.how for pair in made} == {"wording", "entity", "number", "negation", "relation"}
    assert all(pair.first != pair.second and pair.same == (pair.how == "wording") for pair in made)
    assert len({(pair.first[0], pair.second[0]) for pair in made}) == len(made)
    assert all(first != second for first, second, _ in passages())
