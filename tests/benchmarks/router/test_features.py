"""What extracting the 128 features of one question takes beyond its embedding: `pytest -m benchmark -s` on this file.

A question of memory's full answer: 32 hits of 384 numbers, fitted transforms, one thread. Nothing is asserted of the
time; the language detector alone stands beside the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from ruvllm.router.features import FeatureInput, extract
from ruvllm.router.language import language, warm
from ruvllm.router.transforms import fit_transforms

CALLS, DIMENSION, HITS = 2000, 384, 32
QUESTION = "What is the capital of Chad?"


def microseconds(call: Callable[[], object]) -> str:
    spent = []
    for _ in range(CALLS):
        before = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - before) / 1000)
    p50, p99 = np.quantile(spent, (0.5, 0.99))
    return f"p50 {p50:.0f} us, p99 {p99:.0f} us, N {CALLS}"


@pytest.mark.benchmark
def test_one_question() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, DIMENSION)).astype(np.float32)
    transforms = fit_transforms(vectors, 0)
    given = FeatureInput(
        question=QUESTION,
        token_count=7,
        embedding=vectors[0],
        similarities=np.linspace(0.9, 0.3, HITS, dtype=np.float32),
        hit_embeddings=vectors[1 : HITS + 1],
        hit_domains=("geography",) * HITS,
    )
    warm()
    print(f"\nall 128 features: {microseconds(lambda: extract(given, transforms))}")
    print(f"language alone:   {microseconds(lambda: language(QUESTION))}")
