"""What the router sees of a question: its vector, what memory holds near it, the 128 features.

Knows nothing of models that answer or of HTTP.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from ruvllm.answering.asking import Ask
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.memory.records import Hit, Vector
from ruvllm.memory.store import Memory
from ruvllm.router import language
from ruvllm.router.features import FeatureInput, extract
from ruvllm.router.live import NOTHING_KNOWN, Now
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings
from ruvllm.text import whole_question

_WORDS = re.compile(r"\w+|[^\w\s]")


def count_words(text: str) -> int:
    """Words and marks: a number of tokens before any tokeniser was asked."""
    return len(_WORDS.findall(text))


class Perception:
    """Of one tenant's memory."""

    def __init__(self, settings: Settings, embedder: EmbeddingAdapter, memory: Memory) -> None:
        self.settings, self.embedder, self.memory = settings, embedder, memory
        language.warm()

    def vector(self, ask: Ask) -> Vector:
        """(d,) unit vector; a follow-up is embedded behind the question that opened its session."""
        return self.embedder.embed_one(whole_question(ask.question, ask.history))

    def search(self, vector: Vector, reader: str = "") -> list[Hit]:
        return self.memory.search(vector, self.settings.search_k, reader=reader)

    def features(
        self,
        ask: Ask,
        vector: Vector,
        hits: Sequence[Hit],
        runtime: RouterRuntime | None,
        queue_depth: int = 0,
        known: Now = NOTHING_KNOWN,
        concurrent: float = math.nan,
    ) -> NDArray[np.float32]:
        """(128,) float32. `known` and `concurrent` are of the service that asks; unknown outside one."""
        return extract(
            FeatureInput(
                question=ask.question,
                token_count=count_words(ask.question),
                embedding=vector,
                similarities=np.array([hit.similarity for hit in hits], dtype=np.float32),
                hit_embeddings=np.array([h.embedding for h in hits], dtype=np.float32).reshape(len(hits), vector.size),
                encoder_id=self.embedder.id,
                k_asked=self.settings.search_k,
                turn=ask.turn,
                latency_budget_s=ask.latency_budget_s or self.settings.deadline_s,
                device_class=ask.device_class,
                privacy_level=ask.privacy,
                queue_depth=queue_depth,
                concurrent=concurrent,
                now=datetime.now(),
                **vars(_of_the_request(known, ask)),
            ),
            runtime.transforms if runtime else None,
        )


def _of_the_request(known: Now, ask: Ask) -> Now:
    """What the request says of its device goes before what is known of this machine."""
    battery = known.battery if ask.battery is None else ask.battery
    memory_gb = known.memory_available_gb if ask.memory_gb is None else ask.memory_gb
    return replace(known, battery=battery, memory_available_gb=memory_gb)
