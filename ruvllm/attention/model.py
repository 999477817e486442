"""An attention model as one file: safetensors, its shape and origin in the header, hashed before it is parsed.

Knows nothing of torch or of registries. Beside the weights lie the scores that the model gave to a made-up
neighbourhood when it was written; a runtime that does not give them again refuses to serve.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ruvllm.attention.graph import EDGE_FEATURES, N_EDGE, N_NODE, NODE_FEATURES, Array, Edges, Subgraph, directed
from ruvllm.attention.runtime import AttentionRuntime
from ruvllm.attention.shape import Shape
from ruvllm.errors import ArtifactError

FORMAT, KIND = "1", "ruvllm-attention"
TOLERANCE = 1e-4  # of the golden scores: another machine's sums may come in another order
_GOLDEN, _GOLDEN_NODES, _GOLDEN_EDGES = "golden", 24, 60
_MAX_BYTES = 64 * 2**20
LAYOUT = hashlib.sha256(repr((NODE_FEATURES, EDGE_FEATURES)).encode()).hexdigest()[:16]
_AGAIN = "train it again, or fetch the bundle again"


@dataclass(frozen=True, eq=False)
class AttentionModel:
    """Weights by the names of `Shape.arrays`, and where they come from."""

    shape: Shape
    arrays: Mapping[str, Array]
    encoder: str  # id of the encoder whose vectors it was trained on
    version: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    def runtime(self) -> AttentionRuntime:
        return AttentionRuntime(self.shape, self.arrays)


def to_bytes(model: AttentionModel) -> bytes:
    """The file's content; the same model gives the same bytes.

    Raises:
        ArtifactError: an array is missing, misshapen or not finite.
    """
    arrays = {name: np.array(array, dtype=np.float32, order="C") for name, array in model.arrays.items()}
    _check(model.shape, arrays)
    golden = AttentionRuntime(model.shape, arrays).attend(golden_graph(model.shape)).scores
    header = {
        "format": FORMAT, "kind": KIND, "layout": LAYOUT, "encoder": model.encoder, "version": model.version,
        "shape": json.dumps(asdict(model.shape), sort_keys=True),
        "metrics": json.dumps(dict(model.metrics), sort_keys=True, allow_nan=False),
    }  # fmt: skip
    return _framed(save({**arrays, _GOLDEN: golden}), header)


def _framed(content: bytes, header: Mapping[str, str]) -> bytes:
    """safetensors writes metadata in an order of its own; ours are sorted, so that equal models are equal files."""
    size = int.from_bytes(content[:8], "little")
    whole = {"__metadata__": dict(sorted(header.items())), **json.loads(content[8 : 8 + size])}
    text = json.dumps(whole, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def from_bytes(content: bytes, sha256: str | None = None) -> AttentionModel:
    """Read and verify: hash, kind, layout, shapes, finite numbers, golden scores, in this order.

    Raises:
        ArtifactError: the first of these that is not as it should be.
    """
    if sha256 is not None and (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise ArtifactError(f"attention model: sha256 is {got[:12]}…, want {sha256[:12]}…; {_AGAIN}")
    header = _header(content)
    for name, want in (("kind", KIND), ("format", FORMAT), ("layout", LAYOUT)):
        if header.get(name) != want:
            raise ArtifactError(f"attention model: {name} is {header.get(name)!r}, want {want!r}; {_AGAIN}")
    try:
        arrays = load(content)
        shape, metrics = Shape(**json.loads(header["shape"])), json.loads(header["metrics"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"attention model: cannot be read ({error}); {_AGAIN}") from error
    golden = arrays.pop(_GOLDEN, np.zeros(0, np.float32))
    _check(shape, arrays)
    model = AttentionModel(shape, arrays, header.get("encoder", ""), header.get("version", ""), metrics)
    _check_golden(model, golden)
    return model


def read(path: Path, sha256: str | None = None) -> AttentionModel:
    """
    Raises:
        ArtifactError: the file is missing, too large, or as `from_bytes` says.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"attention model {path.name}: {error.strerror or error}; {_AGAIN}") from error
    if len(content) > _MAX_BYTES:
        raise ArtifactError(f"attention model {path.name}: over {_MAX_BYTES} bytes; {_AGAIN}")
    return from_bytes(content, sha256)


def golden_graph(shape: Shape) -> Subgraph:
    """A made-up neighbourhood, the same on every machine."""
    rng, n = np.random.default_rng(8), _GOLDEN_NODES
    ends = rng.integers(0, n, (2, _GOLDEN_EDGES))
    ends = ends[:, ends[0] != ends[1]]
    count = ends.shape[1]
    real = np.ones(count, np.float32)
    relation: NDArray[np.int8] = np.asarray(rng.integers(1, 7, count), dtype=np.int8)
    edges = Edges(ends[0], ends[1], relation, real, real, real)
    messages = directed(edges, n)
    hop = np.sort(rng.integers(0, 3, n)).astype(np.float32)
    return Subgraph(
        np.arange(n), rng.random((n, N_NODE), np.float32),
        rng.standard_normal((n, shape.embedding), np.float32) / np.float32(shape.embedding),
        np.sort(rng.random(n, np.float32))[::-1].copy(), hop, rng.random(n, np.float32) * 5,
        messages.source, messages.target, messages.code, rng.random((len(messages.code), N_EDGE), np.float32),
    )  # fmt: skip


def _header(content: bytes) -> dict[str, str]:
    size = int.from_bytes(content[:8], "little")
    try:
        if not 0 < size <= len(content) - 8:
            raise ValueError(f"a header of {size} bytes in a file of {len(content)}")
        header = json.loads(content[8 : 8 + size])["__metadata__"]
        if not all(isinstance(value, str) for value in header.values()):
            raise ValueError("a header value that is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"attention model: not a safetensors file of ours ({error}); {_AGAIN}") from error
    return dict(header)


def _check(shape: Shape, arrays: Mapping[str, Array]) -> None:
    wanted = shape.arrays()
    if set(arrays) != set(wanted):
        difference = ", ".join(sorted(set(arrays) ^ set(wanted)))
        raise ArtifactError(f"attention model: arrays missing or unknown: {difference}; {_AGAIN}")
    for name, size in wanted.items():
        array = arrays[name]
        if array.shape != size or array.dtype != np.float32:
            raise ArtifactError(f"attention model: {name} is {array.dtype} {array.shape}, want float32 {size}")
        if not np.isfinite(array).all():
            raise ArtifactError(f"attention model: {name} has values that are not finite; {_AGAIN}")
    if not all((arrays[name] > 0).all() for name in ("node_scale", "edge_scale")):
        raise ArtifactError(f"attention model: a scale is not over 0; {_AGAIN}")


def _check_golden(model: AttentionModel, golden: Array) -> None:
    got = model.runtime().attend(golden_graph(model.shape)).scores
    if golden.shape != got.shape or not np.allclose(got, golden, atol=TOLERANCE, rtol=TOLERANCE):
        raise ArtifactError(f"attention model {model.version}: its golden scores do not come out; {_AGAIN}")
