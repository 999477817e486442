"""Earlier outcomes against sums written out by hand, and as a stream: nothing of a row's own or a later outcome."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvllm.router.layout import HISTORY, LAYOUT
from ruvllm.router.past import LATEST, NEAREST, as_a_stream, make_past

D = 8


def units(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def named(row: np.ndarray) -> dict[str, float]:
    return dict(zip(HISTORY, row.tolist(), strict=True))


def scaled(share: float) -> float:
    return (1 + 9 * share) / 10


def turned(vector: np.ndarray, cosine: float) -> np.ndarray:
    """A unit vector at that cosine from the first axis."""
    return np.array([cosine, np.sqrt(1 - cosine**2), *[0] * (D - 2)], dtype=np.float32)


def test_near_duplicates_weigh_by_how_near_they_are() -> None:
    first = np.eye(1, D, dtype=np.float32)[0]
    table = np.stack([turned(first, 0.97), turned(first, 0.88), turned(first, 0.5), turned(first, 0.1), -first])
    quality = np.array([[1.0, np.nan], [0.0, 1.0], [1, 1], [1, 1], [1, 1]])
    quality = np.concatenate([quality, np.full((5, 2), np.nan)], axis=1)
    found = named(make_past(table, quality, np.full(5, -1)).places(first[None].astype(float), np.array([-1]))[0])
    near, less = (0.97 - 0.85) / 0.15, (0.88 - 0.85) / 0.15
    assert found["duplicates.tier1"] == pytest.approx(scaled(near / (near + less)), abs=1e-5)
    assert found["duplicates.tier2"] == pytest.approx(1.0)  # only the second one was run on it
    assert found["duplicates.tier3"] == 0  # never run: unknown
    assert found["duplicate_weight"] == pytest.approx((near + less) / (1 + near + less), abs=1e-5)
    assert found["nearest"] == pytest.approx(scaled(0.97), abs=1e-5)
    assert found["neighbours.tier1"] == pytest.approx(scaled((4 + 10 * 4 / 5) / (5 + 10)))
    assert found["neighbours.tier2"] == 0  # four outcomes say nothing yet


def test_the_forty_nearest_are_asked() -> None:
    table, quality = units(300, 1), np.random.default_rng(2).random((300, 4))
    asked = units(1, 3).astype(float)
    found = named(make_past(table, quality, np.full(300, -1)).places(asked, np.array([-1]))[0])
    nearest = np.argsort(-(table @ asked[0]))[:NEAREST]
    wanted = (quality[nearest].sum(axis=0) + 10 * quality.mean(axis=0)) / (NEAREST + 10)
    assert [found[f"neighbours.tier{t}"] for t in (1, 2, 3, 4)] == pytest.approx(scaled(wanted).tolist(), abs=1e-6)


def test_a_domain_has_its_record_and_answers_count_in_it() -> None:
    quality = np.tile([1.0, 0.0, np.nan, 0.5], (6, 1))
    extra = np.zeros((16, 4)), np.zeros((16, 4))
    extra[1][3, :2] = 6  # six more answers, all of quality 0
    past = make_past(units(6), quality, np.full(6, 3), extra)
    found, other = (named(row) for row in past.places(units(2, 4).astype(float), np.array([3, 5])))
    assert [found[f"domain.tier{t}"] for t in (1, 2, 3, 4)] == pytest.approx([scaled(0.5), 0.1, 0, scaled(0.5)])
    assert found["domain_count"] == pytest.approx(np.log(13) / np.log(4097))
    assert other["domain.tier1"] == other["domain_count"] == 0
    assert extra[1].sum() == 12  # the caller's are left as they were


def test_an_empty_table_says_nothing() -> None:
    past = make_past(np.zeros((0, 0), dtype=np.float32), np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
    assert not past.places(units(2).astype(float), np.array([-1, 2])).any()


def test_only_the_latest_are_kept() -> None:
    table, quality = units(LATEST + 3), np.zeros((LATEST + 3, 4))
    past = make_past(table, quality, np.full(LATEST + 3, -1))
    np.testing.assert_allclose(past.embedding, table[3:], atol=1e-6)


def stream(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Questions of which many are near-duplicates, some tiers not run, some domains unknown, some rows held out."""
    rng = np.random.default_rng(seed)
    vectors = units(6, seed)[rng.integers(6, size=n)] + rng.normal(0, 0.05, (n, D)).astype(np.float32)
    quality = np.where(rng.random((n, 4)) < 0.2, np.nan, rng.random((n, 4)))
    return vectors.astype(np.float32), quality, rng.integers(-1, 3, n), rng.random(n) < 0.3


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0, 10**6), data=st.data())
def test_no_row_sees_its_own_or_a_later_outcome_and_none_that_trains_a_held_out_one(
    n: int, seed: int, data: st.DataObject
) -> None:
    """Each row is what a table of the earlier ones would say; another outcome of `at` changes only who may see it."""
    vectors, quality, domains, held_out = stream(n, seed)
    found = as_a_stream(vectors, quality, domains, held_out)
    norms = np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    row = data.draw(st.integers(0, n - 1))
    sources = [other for other in range(row) if held_out[row] or not held_out[other]]
    past = make_past(vectors[sources].reshape(-1, D), quality[sources], domains[sources])
    wanted = past.places((vectors / norms)[row : row + 1], domains[row : row + 1])[0]
    np.testing.assert_allclose(found[row], wanted, atol=1e-5)
    at = data.draw(st.integers(0, n - 1))
    changed = quality.copy()
    changed[at] = 1 - np.nan_to_num(changed[at], nan=0.0)
    other = as_a_stream(vectors, changed, domains, held_out)
    may_not = (np.arange(n) <= at) | (held_out[at] & ~held_out)
    np.testing.assert_array_equal(found[may_not], other[may_not])


def test_a_long_stream_looks_back_as_far_as_a_table_does() -> None:
    n = LATEST + 20
    vectors, quality = units(n), np.random.default_rng(1).random((n, 4))
    found = as_a_stream(vectors, quality, np.full(n, -1), np.zeros(n, dtype=bool))
    past = make_past(vectors[: n - 1], quality[: n - 1], np.full(n - 1, -1))
    np.testing.assert_allclose(found[-1], past.places(vectors[-1:].astype(float), np.array([-1]))[0], atol=1e-5)


def test_the_layout_says_what_is_looked_at() -> None:
    place = LAYOUT.by_name["historical_accuracy"]
    assert f"latest {LATEST} " in place.meaning
    assert f"{NEAREST} nearest" in place.meaning
    assert place.labels == HISTORY
