"""Features: bounds for any input, signals that move with what they name, and errors that name the field."""

import math
from dataclasses import fields, replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ruvllm.errors import InputError
from ruvllm.router.features import FeatureInput, domains_of, extract, extract_many
from ruvllm.router.layout import DOMAINS, HISTORY, LANGUAGES, LAYOUT
from ruvllm.router.past import Past, make_past
from ruvllm.router.transforms import fit_transforms

D = 16
MAY_BE_UNKNOWN = {"corpus_size", "memory_available_gb", "battery", "concurrent", "user_frequency"}
_FINITE32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def unit_rows(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def example(question: str = "What is the capital of Chad?", k: int = 10, **changes: object) -> FeatureInput:
    rows = unit_rows(k + 1)
    base = FeatureInput(
        question=question,
        token_count=7,
        embedding=rows[0],
        similarities=np.linspace(0.9, 0.3, k, dtype=np.float32),
        hit_embeddings=rows[1:],
        k_asked=20,
        corpus_size=5000,
        now=datetime(2026, 11, 1, 6, 0),
    )
    return replace(base, **changes)


def place(name: str, given: FeatureInput, **kwargs: object) -> np.ndarray:
    return extract(given, **kwargs)[LAYOUT[name]]


@settings(max_examples=60, deadline=None)
@given(
    question=st.text(max_size=200),
    embedding=arrays(np.float32, D, elements=_FINITE32),
    similarities=arrays(np.float32, st.integers(0, 12), elements=_FINITE32),
    numbers=st.lists(st.floats(0, 1e30), min_size=4, max_size=4),
    turn=st.integers(1, 10**9),
    fitted=st.booleans(),
)
def test_any_finite_input_stays_within_the_ranges(
    question: str, embedding: np.ndarray, similarities: np.ndarray, numbers: list[float], turn: int, fitted: bool
) -> None:
    features = extract(
        FeatureInput(
            question=question,
            token_count=len(question),
            embedding=embedding,
            similarities=similarities,
            hit_embeddings=np.tile(embedding, (len(similarities), 1)),
            turn=turn,
            latency_budget_s=numbers[0],
            memory_available_gb=numbers[1],
            battery=numbers[2],
            user_frequency=numbers[3],
        ),
        fit_transforms(unit_rows(40), seed=0) if fitted else None,
    )
    assert features.shape == (128,)
    assert features.dtype == np.float32
    assert (features >= LAYOUT.low).all()
    assert (features <= LAYOUT.high).all()


@pytest.mark.parametrize(
    "name",
    [
        f.name
        for f in fields(FeatureInput)
        if f.name not in ("question", "encoder_id", "past", "device_class", "privacy_level", "now")
    ],
)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_is_named(name: str, poison: float) -> None:
    value = getattr(example(), name)
    if name in MAY_BE_UNKNOWN and math.isnan(poison):
        pytest.skip("nan says that it is unknown")
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flat[-1] = poison
    else:
        value = poison
    with pytest.raises(InputError, match=name):
        extract(example(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("turn", 0),
        ("token_count", -1),
        ("k_asked", 0),
        ("embedding", np.zeros((2, 8), dtype=np.float32)),
        ("similarities", np.zeros((10, 1), dtype=np.float32)),
        ("hit_embeddings", np.zeros((9, D), dtype=np.float32)),
        ("device_class", "toaster"),
        ("privacy_level", "secret"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        extract(example(**{name: value}))


def test_transforms_of_another_encoder_are_refused() -> None:
    other = fit_transforms(np.random.default_rng(0).normal(size=(20, 2 * D)).astype(np.float32), seed=0)
    with pytest.raises(InputError, match=r"got 16 values.*for 32"):
        extract(example(), other)


def test_empty_memory_gives_zeros() -> None:
    empty = FeatureInput(question="Hello", token_count=1, embedding=unit_rows(1)[0])
    features = extract(empty)
    assert not features[LAYOUT["k_retrieved"].start : LAYOUT["semantic_coherence"].stop].any()
    assert not features[LAYOUT["memory_coverage"]].any()
    assert not features[LAYOUT["hour_sine"].start :].any()


def test_search_stats_are_those_of_the_similarities() -> None:
    given = example(k=10)
    distances = 1 - np.linspace(0.9, 0.3, 10)
    expected = (distances.mean(), distances.std(), 0.1, 0.7)
    np.testing.assert_allclose(place("distances", given), expected, atol=1e-6)
    assert place("k_retrieved", given) == pytest.approx(10 / 64)
    assert place("recall_estimate", given) == pytest.approx(0.5)
    assert place("memory_coverage", given) == pytest.approx(np.linspace(0.9, 0.3, 10)[:5].mean(), abs=1e-6)
    assert place("graph_depth", given) == pytest.approx((1 + math.log(5001) / math.log(16)) / 9)
    density = place("neighborhood_density", given)
    np.testing.assert_allclose(density * 10, np.histogram(distances, bins=16, range=(0, 1))[0], atol=1e-5)
    peaked = example(similarities=np.array([0.9] + [0.1] * 9, dtype=np.float32))
    even = example(similarities=np.full(10, 0.5, dtype=np.float32))
    assert place("search_entropy", peaked) < 0.01
    assert place("search_entropy", even) == pytest.approx(1)


def test_coherence_summarises_the_pairwise_similarities() -> None:
    given = example(k=10)
    coherence = place("semantic_coherence", given)
    pairs = [float(a @ b) for i, a in enumerate(given.hit_embeddings[:8]) for b in given.hit_embeddings[i + 1 : 8]]
    assert coherence[0] == pytest.approx(min(pairs), abs=1e-6)
    assert coherence[-1] == pytest.approx(max(pairs), abs=1e-6)
    np.testing.assert_allclose(coherence, np.quantile(pairs, np.linspace(0, 1, 24)), atol=1e-5)
    same = example(k=3, hit_embeddings=np.tile(unit_rows(1), (3, 1)))
    np.testing.assert_allclose(place("semantic_coherence", same), 1, atol=1e-6)


def test_embedding_stats() -> None:
    spike = np.zeros(D, dtype=np.float32)
    spike[3] = 1
    flat = np.full(D, 0.25, dtype=np.float32)
    assert [place(name, example(embedding=spike))[0] for name in ("l2_norm", "entropy", "sparsity")] == [1, 0, 1]
    assert [place(name, example(embedding=flat))[0] for name in ("l2_norm", "entropy", "sparsity")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of Chad?", "english"),
        ("¿Cuál es la capital de Chad?", "spanish"),
        ("Quelle est la capitale du Tchad ?", "french"),
        ("Was ist die Hauptstadt von Tschad?", "german"),
        ("Qual è la capitale del Ciad?", "italian"),
        ("Qual é a capital do Chade?", "portuguese"),
        ("Какая столица Чада?", "russian"),
        ("乍得的首都是什么？", "chinese"),
        ("チャドの首都は何ですか", None),
        ("12345 ?", None),
        ("차드의 수도는 어디입니까?", None),
    ],
)
def test_language(question: str, expected: str | None) -> None:
    found = place("language_id", example(question))
    assert found.tolist() == [float(name == expected) for name in LANGUAGES]


def test_system_stats() -> None:
    features = extract(example(turn=8, latency_budget_s=120, queue_depth=64, device_class="edge"))
    assert features[LAYOUT["session_turn"]] == pytest.approx(0.5)
    assert features[LAYOUT["latency_budget"]] == pytest.approx(1)
    assert features[LAYOUT["queue_depth"]] == pytest.approx(1)
    assert features[LAYOUT["device_class"]].tolist() == [1, 0, 0, 0]
    assert features[LAYOUT["hour_sine"]] == pytest.approx(1)  # six o'clock
    assert features[LAYOUT["hour_cosine"]] == pytest.approx(0, abs=1e-6)


UNKNOWN = {
    "corpus_size": "graph_depth", "memory_available_gb": "memory_available", "battery": "battery_level",
    "concurrent": "concurrent_requests", "user_frequency": "user_frequency",
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_is_zero_and_nothing_known_is(name: str) -> None:
    least = 1 if name == "concurrent" else 0
    assert place(UNKNOWN[name], example(**{name: math.nan}))[0] == 0
    assert place(UNKNOWN[name], example(**{name: least}))[0] > 1e-4
    assert place(UNKNOWN[name], example(**{name: least + 1}))[0] > place(UNKNOWN[name], example(**{name: least}))[0]


def past_of(n: int = 30, seed: int = 5) -> Past:
    rng = np.random.default_rng(seed)
    return make_past(unit_rows(n, seed), rng.random((n, 4)), rng.integers(-1, 16, n))


def test_without_a_record_history_is_unknown_and_with_one_it_is_there() -> None:
    assert not place("historical_accuracy", example()).any()
    past = past_of()
    known = dict(zip(HISTORY, place("historical_accuracy", example(past=past)).tolist(), strict=True))
    assert all(known[f"neighbours.tier{tier}"] >= 0.1 for tier in (1, 2, 3, 4))
    assert known["domain.tier1"] == 0  # its domain is unknown
    again = place("historical_accuracy", example(embedding=past.embedding[3], past=past))
    found = dict(zip(HISTORY, again.tolist(), strict=True))
    assert found["nearest"] == pytest.approx(1)
    assert found["duplicates.tier2"] == pytest.approx((1 + 9 * past.quality[3, 1]) / 10, abs=1e-6)


_QUESTIONS = st.builds(
    lambda question, seed, k, turn, known, past: example(
        question,
        k=k,
        embedding=unit_rows(1, seed)[0],
        similarities=np.random.default_rng(seed).uniform(-1, 1, k).astype(np.float32),
        turn=turn,
        corpus_size=known,
        past=past_of() if past else None,
    ),
    st.text(max_size=60),
    st.integers(0, 10**6),
    st.integers(0, 12),
    st.integers(1, 100),
    st.sampled_from([math.nan, 0.0, 1e6]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(questions=st.lists(_QUESTIONS, min_size=1, max_size=7), fitted=st.booleans())
def test_many_at_once_are_each_by_itself(questions: list[FeatureInput], fitted: bool) -> None:
    transforms = fit_transforms(unit_rows(40), seed=0) if fitted else None
    together = extract_many(questions, transforms)
    alone = np.stack([extract(one, transforms) for one in questions])
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_many_want_one_dimension_and_may_be_none() -> None:
    assert extract_many([]).shape == (0, 128)
    with pytest.raises(InputError, match=r"embedding: vectors of 8, 16 values"):
        extract_many([example(k=0), FeatureInput("?", 1, np.ones(8, dtype=np.float32))])


def test_a_table_of_another_encoder_is_refused() -> None:
    other = make_past(np.eye(8, dtype=np.float32), np.ones((8, 4)), np.zeros(8, dtype=np.int64))
    with pytest.raises(InputError, match=r"got 16 values, earlier questions have 8"):
        extract(example(past=other))


def test_the_likeliest_domain_is_read_where_there_is_one() -> None:
    features = np.zeros((2, 128), dtype=np.float32)
    features[1, LAYOUT["domain_encoding"].start + DOMAINS.index("energy")] = 0.4
    assert domains_of(features).tolist() == [-1, DOMAINS.index("energy")]
