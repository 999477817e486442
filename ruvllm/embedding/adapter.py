"""Encoder -> projection -> LayerNorm -> unit norm; knows nothing of what encodes and of where vectors go.

Specification 4.2.1. The projection is the identity until one is trained, LayerNorm has no affine part until then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import ArtifactError, InferenceError

Floats = NDArray[np.float32]
Role = Literal["query", "document"]  # some encoders are asymmetric: a question is encoded unlike a passage

_EPSILON = 1e-5  # of LayerNorm
_SLAB = 512  # texts encoded at once, so that memory is bounded
_CACHED = 1024  # questions whose vectors are kept


class Encoder(Protocol):
    """What turns text into raw vectors."""

    @property
    def id(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    def encode(self, texts: Sequence[str], role: Role = "document") -> Floats:
        """(n, d) float32, in the order of `texts`."""
        ...


@dataclass(frozen=True)
class Projection:
    """A trained linear map; `matrix` is (d_out, d_in), `version` becomes part of the vectors' encoder id."""

    matrix: Floats
    version: str


class EmbeddingAdapter:
    """Unit vectors of texts. Safe to share between threads."""

    def __init__(self, encoder: Encoder, projection: Projection | None = None) -> None:
        if projection is not None and projection.matrix.shape[1] != encoder.dimension:
            raise ArtifactError(
                f"projection {projection.version}: takes {projection.matrix.shape[1]} dimensions,"
                f" encoder {encoder.id} gives {encoder.dimension}; train it on this encoder's vectors"
            )
        self._encoder, self._projection = encoder, projection
        self._cache: OrderedDict[tuple[str, Role], Floats] = OrderedDict()
        self._lock = Lock()

    @property
    def id(self) -> str:
        """Whose vectors these are; vectors of different ids must never be compared."""
        return self._encoder.id if self._projection is None else f"{self._encoder.id}+{self._projection.version}"

    @property
    def dimension(self) -> int:
        return self._encoder.dimension if self._projection is None else int(self._projection.matrix.shape[0])

    def embed(self, texts: Sequence[str], role: Role = "document") -> Floats:
        """(n, d) float32 unit vectors.

        Raises:
            InferenceError: the encoder gave a vector that is not finite or has no direction.
        """
        slabs = [self._embed_slab(texts[i : i + _SLAB], role) for i in range(0, len(texts), _SLAB)]
        return np.concatenate(slabs) if slabs else np.empty((0, self.dimension), dtype=np.float32)

    def embed_one(self, text: str, role: Role = "query") -> Floats:
        """(d,) float32 unit vector, read-only; the latest 1,024 are remembered."""
        with self._lock:
            if (known := self._cache.get((text, role))) is not None:
                self._cache.move_to_end((text, role))
                return known
        vector: Floats = self.embed([text], role)[0]
        vector.flags.writeable = False
        with self._lock:
            self._cache[text, role] = vector
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return vector

    def _embed_slab(self, texts: Sequence[str], role: Role) -> Floats:
        raw = self._encoder.encode(texts, role)  # (n, d_in)
        if raw.shape != (len(texts), self._encoder.dimension):
            raise InferenceError(
                f"encoder {self._encoder.id}: got vectors of shape {raw.shape},"
                f" want {(len(texts), self._encoder.dimension)}"
            )
        if self._projection is not None:
            raw = raw @ self._projection.matrix.T  # (n, d_out)
        self._refuse_broken(texts, np.asarray(np.isfinite(raw).all(axis=1)), "is not finite")
        normed = _layer_norm(raw)
        lengths = np.linalg.norm(normed, axis=1, keepdims=True)  # (n, 1)
        self._refuse_broken(texts, lengths[:, 0] > 0.1, "has no direction")  # sqrt(d) unless all places are equal
        return np.asarray(normed / lengths, dtype=np.float32)

    def _refuse_broken(self, texts: Sequence[str], sound: NDArray[np.bool_], what: str) -> None:
        if not sound.all():
            text = texts[int(np.argmin(sound))]
            raise InferenceError(f"encoder {self.id}: the vector of {text[:60]!r} {what}")


def _layer_norm(raw: Floats) -> Floats:
    """(n, d) -> (n, d); Ba et al. 2016, equation 4, without gain and bias."""
    wide = raw.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    normed: Floats = (centred / np.sqrt(centred.var(axis=1, keepdims=True) + _EPSILON)).astype(np.float32)
    return normed
