"""A deterministic encoder for unit tests: a signed bag of hashed words. Knows nothing of meaning; not for real use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from ruvllm.embedding.adapter import Floats, Role

_WORD = re.compile(r"\w+")


class HashingEncoder:
    """Texts that share words are near, texts that share none are nearly orthogonal; order does not count."""

    def __init__(self, dimension: int = 384, id: str = "test-encoder") -> None:
        self._dimension, self._id = dimension, id

    @property
    def id(self) -> str:
        return self._id

    @property
    def dimension(self) -> int:
        return self._dimension

    def encode(self, texts: Sequence[str], role: Role = "document") -> Floats:
        rows = [self._bag(text) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self._dimension)

    def _bag(self, text: str) -> Floats:
        words = _WORD.findall(text.casefold()) or [text]
        bag: Floats = np.sum([self._direction(word) for word in words], axis=0, dtype=np.float32)
        return bag

    def _direction(self, word: str) -> Floats:
        """(d,) of +1 and -1, drawn from the word's hash."""
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        signs = np.random.default_rng(seed).integers(0, 2, self._dimension)
        return (signs * 2 - 1).astype(np.float32)
