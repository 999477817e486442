"""Domain and query type of a question by multinomial logistic regression over its embedding, on numpy alone.

Knows nothing of how the weights were fitted (`fitting`) or of a question's words. Weights speak of one encoder's
vectors only: for an encoder without classifiers both places are unknown, all 0, and whoever serves is told so once.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ruvllm.errors import ArtifactError
from ruvllm.router.layout import DOMAINS, QUERY_TYPES
from ruvllm.router.shipped import CLASSIFIERS

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Wide = NDArray[np.float64]

FOLDER = Path(__file__).parent / "data"
_WAY_OUT = "install the package again"


@dataclass(frozen=True, eq=False)
class Linear:
    """Shares of classes: softmax(weight @ x + bias)."""

    weight: Wide  # (classes, d)
    bias: Wide  # (classes,)

    def shares(self, embeddings: Wide) -> Wide:
        """(n, d) -> (n, classes), rows sum to 1."""
        logits = embeddings @ self.weight.T + self.bias
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Wide = weights / weights.sum(axis=1, keepdims=True)
        return shares


@dataclass(frozen=True, eq=False)
class Classifiers:
    """Both classifiers of one encoder."""

    domain: Linear  # 16 classes
    query_type: Linear  # 6 classes

    @property
    def dimension(self) -> int:
        return int(self.domain.weight.shape[1])

    def to_bytes(self) -> bytes:
        """The file's content; float32, the same classifiers give the same bytes."""
        parts = {"domain": self.domain, "query_type": self.query_type}
        return save(
            {
                f"{name}.{field}": np.ascontiguousarray(getattr(part, field), dtype=np.float32)
                for name, part in parts.items()
                for field in ("weight", "bias")
            }
        )


@lru_cache(maxsize=8)
def classifiers_for(encoder_id: str) -> Classifiers | None:
    """The shipped classifiers of an encoder; None where there are none for it. Read and checked once.

    Raises:
        ArtifactError: the file is missing, altered, or not what it should be.
    """
    shipped = CLASSIFIERS.get(encoder_id)
    if shipped is None:
        if encoder_id:
            log.warning("no classifiers for encoder %s: domain and query type of questions are unknown", encoder_id)
        return None
    return parse(shipped.file, _read(FOLDER / shipped.file, shipped.sha256))


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"classifiers {path.name}: {error.strerror or error}; {_WAY_OUT}") from error
    if (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise ArtifactError(f"classifiers {path.name}: sha256 is {got}, want {sha256}; {_WAY_OUT}")
    return content


def parse(name: str, content: bytes) -> Classifiers:
    """What `to_bytes` wrote.

    Raises:
        ArtifactError: it is not a safetensors file, or its arrays are not those of the layout's classes.
    """
    try:
        arrays = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"classifiers {name}: not a safetensors file ({error}); {_WAY_OUT}") from error
    dimension = arrays["domain.weight"].size // len(DOMAINS) if "domain.weight" in arrays else 0
    shapes = {
        "domain.weight": (len(DOMAINS), dimension),
        "domain.bias": (len(DOMAINS),),
        "query_type.weight": (len(QUERY_TYPES), dimension),
        "query_type.bias": (len(QUERY_TYPES),),
    }
    got = {key: array.shape for key, array in arrays.items()}
    if got != shapes or not all(np.isfinite(array).all() for array in arrays.values()):
        raise ArtifactError(f"classifiers {name}: arrays {got}, want finite {shapes}; {_WAY_OUT}")
    wide = {key: array.astype(np.float64) for key, array in arrays.items()}
    return Classifiers(
        *(Linear(wide[f"{part}.weight"], wide[f"{part}.bias"]) for part in ("domain", "query_type")),
    )
