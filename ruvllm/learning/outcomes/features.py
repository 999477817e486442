"""What a router may look at in a query of an outcome file: its embedding, and those of the 128 features that are known.

Knows nothing of scores, costs or models. An outcome file comes with no memory, no user and no clock: features that
would need them have the layout's value for "unknown", and `known_places` says which those are not.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import LearningError
from ruvllm.router.features import FeatureInput, extract_many
from ruvllm.router.layout import LAYOUT, N_FEATURES
from ruvllm.router.transforms import Transforms

Array = NDArray[np.float32]

# What the query's words, length and vector say by themselves; everything else needs a memory, a user or a machine.
KNOWN = (
    "token_count", "language_id", "domain_encoding", "query_type",
    "principal_components", "cluster_assignment", "l2_norm", "entropy", "sparsity",
)  # fmt: skip
_CHARACTERS_PER_TOKEN = 4  # as the public files count where they have no tokeniser
_SAVE_EVERY = 128  # texts, so that a killed run loses little


def known_places() -> NDArray[np.bool_]:
    """(128,): which places of the layout say something about a query of an outcome file."""
    known = np.zeros(N_FEATURES, dtype=bool)
    for name in KNOWN:
        known[LAYOUT[name]] = True
    return known


def features_of(
    queries: Sequence[str], embedding: Array, transforms: Transforms | None = None, encoder_id: str = ""
) -> Array:
    """(n, 128), the extractor of serving; `embedding` is (n, d), `transforms` are fitted on training rows only.

    `encoder_id` says whose vectors they are: without it domain and query type are unknown.
    """
    if len(queries) != len(embedding):
        raise LearningError(f"embedding: {len(embedding)} rows for {len(queries)} queries, want one each")
    given = [
        FeatureInput(query, tokens_of(query), vector, encoder_id=encoder_id)
        for query, vector in zip(queries, embedding, strict=True)
    ]
    return extract_many(given, transforms)


def tokens_of(text: str) -> int:
    """Tokens of a text where nobody counted them: a quarter of its characters, rounded up."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class EmbeddingCache:
    """Vectors by the hash of their text, in one file per encoder: the same text is never encoded twice."""

    folder: Path
    adapter: EmbeddingAdapter

    def embed(self, queries: Sequence[str]) -> Array:
        """(n, d) unit vectors in the order of `queries`; what is new is encoded and kept.

        Raises:
            LearningError: the file is not a cache of this encoder; it is named.
        """
        keys = [_key(query) for query in queries]
        known = self._read()
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in known}
        waiting = list(missing.items())
        for start in range(0, len(waiting), _SAVE_EVERY):
            slab = waiting[start : start + _SAVE_EVERY]
            vectors = self.adapter.embed([query for _, query in slab], "query")
            known.update({key: vector for (key, _), vector in zip(slab, vectors, strict=True)})
            self._write(known)
        return np.array([known[key] for key in keys], dtype=np.float32).reshape(len(keys), self.adapter.dimension)

    @property
    def path(self) -> Path:
        return self.folder / f"vectors-{hashlib.sha256(self.adapter.id.encode()).hexdigest()[:16]}.npz"

    def _read(self) -> dict[str, Array]:
        if not self.path.exists():
            return {}
        try:
            # numpy leaves a file open that it could not make sense of
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                keys, vectors, encoder = archive["keys"], archive["vectors"], str(archive["encoder"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise LearningError(f"vectors {self.path}: truncated or altered ({error}); delete the file") from error
        self._check(keys, vectors, encoder)
        return dict(zip(keys.tolist(), vectors, strict=True))

    def _check(self, keys: NDArray[np.str_], vectors: Array, encoder: str) -> None:
        wanted = (len(keys), self.adapter.dimension)
        if encoder != self.adapter.id or vectors.shape != wanted or not np.isfinite(vectors).all():
            raise LearningError(
                f"vectors {self.path}: {vectors.shape} of encoder {encoder}, want finite {wanted} of"
                f" {self.adapter.id}; delete the file"
            )

    def _write(self, known: dict[str, Array]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, keys=np.array(list(known)), vectors=np.array(list(known.values())), encoder=self.adapter.id)
        partial.replace(self.path)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
