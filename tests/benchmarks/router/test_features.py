"""What extracting the 128 features of one question takes beyond its embedding: `pytest -m benchmark -s` on this file.

A question of memory's full answer: 32 hits of 384 numbers, fitted transforms, classifiers, a full table of earlier
outcomes. Nothing is asserted of the time; parts and a batch stand beside the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ruvllm.router.features import FeatureInput, extract, extract_many
from ruvllm.router.language import language, warm
from ruvllm.router.past import LATEST, make_past
from ruvllm.router.transforms import fit_transforms

CALLS, DIMENSION, HITS, BATCH = 2000, 384, 32, 256
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
        encoder_id="all-minilm-l6-v2-int8",
        past=make_past(
            rng.normal(size=(LATEST, DIMENSION)).astype(np.float32),
            rng.random((LATEST, 4)),
            rng.integers(0, 16, LATEST),
        ),
    )
    warm()
    print(f"\nall 128 features:          {microseconds(lambda: extract(given, transforms))}")
    alone = replace(given, past=None)
    print(f"without earlier outcomes:  {microseconds(lambda: extract(alone, transforms))}")
    print(f"language alone:            {microseconds(lambda: language(QUESTION))}")
    before = time.process_time()
    for _ in range(8):
        extract_many([given] * BATCH, transforms)
    each = (time.process_time() - before) / (8 * BATCH) * 1e6
    print(f"one of {BATCH} at once:         {each:.0f} us of CPU")
