from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import InputError
from ruvllm.inference.sampling import check_sampling, pick
from ruvllm.inference.types import Sampling

_BAD = [
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"temperature": -0.1},
    {"temperature": 2.1},
    {"top_p": math.nan},
    {"top_p": -1.0},
    {"top_p": 1.5},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"max_tokens": 10**18},
    {"seed": -1},
    {"stop": ("",)},
    {"stop": ("x",) * 17},
]


@pytest.mark.parametrize("bad", _BAD, ids=str)
def test_what_llama_cpp_would_accept_silently_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(bad))}: got"):
        check_sampling(replace(Sampling(), **bad))  # type: ignore[arg-type]


def test_greedy_takes_the_best() -> None:
    assert pick(np.array([0.1, 3.0, 2.9], np.float32), Sampling(), np.random.default_rng(0)) == 1


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    """Against the definition, written out: sort, add up, cut."""
    logits = np.random.default_rng(3).normal(size=500).astype(np.float32)
    sampling = Sampling(temperature=0.7, top_p=0.5)
    probs = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    allowed, mass = set(), 0.0
    for token in sorted(range(500), key=lambda t: -probs[t]):
        allowed.add(token)
        mass += probs[token]
        if mass >= 0.5:
            break
    rng = np.random.default_rng(0)
    drawn = [pick(logits, sampling, rng) for _ in range(4000)]
    assert set(drawn) <= allowed
    best = int(np.argmax(probs))
    assert drawn.count(best) / 4000 == pytest.approx(probs[best] / mass, abs=0.02)


@given(st.integers(0, 2**31), st.floats(0.1, 2.0), st.floats(0.0, 1.0))
def test_the_same_seed_draws_the_same_token(seed: int, temperature: float, top_p: float) -> None:
    logits = np.linspace(-3, 3, 50, dtype=np.float32)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    draws = {pick(logits, sampling, np.random.default_rng(seed)) for _ in range(3)}
    assert len(draws) == 1
