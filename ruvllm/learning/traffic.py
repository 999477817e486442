"""Scored answers from traffic, as the learner reads them: one .npz beside the snapshot. No pickle in it.

What was decided, with which chance, and what it brought. Rows that were forced, or that no router and no declared rule
decided, are left out and counted. The pair is the decided one: where another tier or a narrower bin had to step in, the
answer's outcome is still the decision's. Knows nothing of estimators (off_policy.py) or of training (refine.py).
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.inference.types import BINS
from ruvllm.router.decision import N_TIERS
from ruvllm.router.durable import replace_file
from ruvllm.router.layout import LAYOUT, N_FEATURES
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.transforms import apply_transforms

if TYPE_CHECKING:
    from ruvllm.database.pool import Database
    from ruvllm.embedding.adapter import EmbeddingAdapter
    from ruvllm.inference.tiers import Ladder
    from ruvllm.settings import Settings

Array = NDArray[np.float32]
Wide = NDArray[np.float64]
Ints = NDArray[np.int64]
Strings = NDArray[np.str_]

LATEST = 2000  # scored answers of 30 days that are read
FILE = "traffic.npz"
DRAWN = ("champion", "explore", "fallback", "cold-start", "cascade")  # decided_by that a propensity speaks of
_FIRST = ("tier:", "cascade:")  # marks of `degraded` that name the tier decided on, when another answered
_WAY_OUT = "read the traffic again (ruvllm cycle)"


@dataclass(frozen=True, eq=False)
class Traffic:
    """n answers, the earliest first. `left_out` says what was not taken, and why."""

    interaction: Ints  # (n,) their ids
    features: Array  # (n, 128), as they were when the answer was decided
    embedding: Array  # (n, d)
    tier: Ints  # (n,) place in the ladder
    bin: Ints  # (n,) index of the context bin
    propensity: Wide  # (n,) of the pair
    quality: Wide  # (n,) in [0, 1]
    latency_s: Wide  # (n,) of the generation
    cost: Wide  # (n,)
    session: Strings  # '' outside a session
    turn: Ints
    tiers: tuple[str, ...]  # 4, '' where the ladder has none
    ladder: str
    encoder_id: str
    layout_hash: str
    latency_weight: float  # lambda
    cost_weight: float  # mu
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.tier)

    @property
    def utility(self) -> Wide:
        """(n,): 1 + 4 Q - lambda L - mu C of what was done."""
        spent = self.latency_weight * self.latency_s + self.cost_weight * self.cost
        return np.asarray(1.0 + 4.0 * self.quality - spent, dtype=np.float64)

    def seen_by(self, runtime: RouterRuntime) -> Array:
        """(n, 128): the features with this router's own transforms; what was known of earlier outcomes stays."""
        if runtime.transforms is not None and len(self):
            return apply_transforms(self.features, self.embedding, runtime.transforms)
        features = self.features.copy()
        features[:, LAYOUT["principal_components"]] = 0.0
        features[:, LAYOUT["cluster_assignment"]] = 0.0
        return features


def read_traffic(
    settings: Settings, database: Database, ladder: Ladder, embedder: EmbeddingAdapter, after: int = 0
) -> Traffic:
    """The latest scored answers of this ladder and layout with an id over `after`; their questions are embedded again.

    Raises:
        DatabaseError: Postgres is away.
    """
    given = {"ladder": ladder.name, "layout": LAYOUT.hash, "after": after, "most": LATEST}
    with database.transaction() as connection:
        rows = connection.cursor(binary=True).execute(_ROWS, given).fetchall()[::-1]
    left_out: Counter[str] = Counter()
    kept, pairs = [], []
    for row in rows:
        why, pair = _decided(row, ladder.names)
        if pair is None:
            left_out[why] += 1
            continue
        kept.append(row)
        pairs.append(pair)
    texts = [f"{row[2][0][0]} {row[1]}" if row[2] else row[1] for row in kept]
    columns = list(zip(*kept, strict=True)) if kept else [()] * len(_COLUMNS)
    decided = np.array(pairs, dtype=np.int64).reshape(len(pairs), 2)
    return Traffic(
        interaction=np.array(columns[0], dtype=np.int64),
        features=np.array(columns[3], dtype=np.float32).reshape(len(kept), N_FEATURES),
        embedding=embedder.embed(texts) if kept else np.zeros((0, embedder.dimension), dtype=np.float32),
        tier=decided[:, 0],
        bin=decided[:, 1],
        propensity=np.array(columns[6], dtype=np.float64),
        quality=np.array(columns[7], dtype=np.float64),
        latency_s=np.array(columns[8], dtype=np.float64),
        cost=np.array(columns[9], dtype=np.float64),
        session=np.array([name or "" for name in columns[10]], dtype=np.str_),
        turn=np.array(columns[11], dtype=np.int64),
        tiers=(*ladder.names, *[""] * (N_TIERS - len(ladder.names))),
        ladder=ladder.name,
        encoder_id=embedder.id,
        layout_hash=LAYOUT.hash,
        latency_weight=settings.latency_weight,
        cost_weight=settings.cost_weight,
        left_out=dict(sorted(left_out.items())),
    )


def _decided(row: Sequence[Any], names: Sequence[str]) -> tuple[str, tuple[int, int] | None]:
    """The pair that was decided on, or why there is none to speak of."""
    tier, context_bin, decided_by, degraded = row[4], row[5], row[12], row[13]
    if decided_by not in DRAWN:
        return decided_by, None
    first = next((mark.partition(":")[2] for mark in degraded if mark.startswith(_FIRST)), None)
    if first is None and decided_by == "cascade":
        return "cascade, first tier unknown", None
    wider = next((int(mark.partition(":")[2]) for mark in degraded if mark.startswith("bin:")), context_bin)
    if (decided := first or tier) not in names or wider not in BINS:
        return "another ladder's tier", None
    return "", (names.index(decided), BINS.index(wider))


def save_traffic(traffic: Traffic, path: Path) -> str:
    """Write the file whole, or leave what was there; returns its sha256. The same answers give the same bytes.

    Raises:
        LearningError: the disk is full, or the place cannot be written.
    """
    arrays = {entry.name: _as_array(getattr(traffic, entry.name)) for entry in fields(Traffic)}
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise LearningError(f"traffic {path}: not written ({error.strerror or error}); free some space") from error
    return hashlib.sha256(content).hexdigest()


def load_traffic(path: Path) -> Traffic:
    """Read and check a file that `save_traffic` wrote.

    Raises:
        LearningError: the file is missing, truncated or altered, or of another feature layout.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        values = {name: _from_array(name, array) for name, array in arrays.items()}
        traffic = Traffic(**values)
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise LearningError(f"traffic {path}: missing, truncated or altered ({error}); {_WAY_OUT}") from error
    _check(traffic, path)
    return traffic


def _check(traffic: Traffic, path: Path) -> None:
    if traffic.layout_hash != LAYOUT.hash:
        raise LearningError(
            f"traffic {path}: feature layout {traffic.layout_hash[:12]}, want {LAYOUT.hash[:12]}; {_WAY_OUT}"
        )
    n = len(traffic)
    shapes = {"features": (n, N_FEATURES), **{name: (n,) for name in ("bin", "propensity", "quality", "session")}}
    for name, shape in shapes.items():
        if getattr(traffic, name).shape != shape:
            raise LearningError(f"traffic {path}: {name} has shape {getattr(traffic, name).shape}, want {shape}")
    if n and not (np.isfinite(traffic.features).all() and np.isfinite(traffic.utility).all()):
        raise LearningError(f"traffic {path}: a value is not finite; {_WAY_OUT}")


def _as_array(value: Any) -> NDArray[Any]:
    if isinstance(value, Mapping):
        return np.array([f"{key}={count}" for key, count in value.items()], dtype=np.str_)
    return np.asarray(value)


def _from_array(name: str, array: NDArray[Any]) -> Any:
    if name == "left_out":
        pairs = [str(entry).rpartition("=") for entry in array.tolist()]
        return {key: int(count) for key, _, count in pairs}
    if name == "tiers":
        return tuple(str(tier) for tier in array.tolist())
    return array.item() if array.ndim == 0 else array


_COLUMNS = (
    "id", "question", "history", "features", "tier", "context_bin", "propensity::float8", "quality::float8",
    "coalesce((stage_ms->>'generate')::float8, total_ms) / 1000", "cost::float8", "session_id", "turn", "decided_by",
    "degraded",
)  # fmt: skip
_ROWS = (
    f"SELECT {', '.join(_COLUMNS)} FROM serving.interactions"  # noqa: S608  # names above, no values
    " WHERE ladder = %(ladder)s AND layout_hash = %(layout)s AND quality IS NOT NULL AND id > %(after)s"
    " AND asked_at > now() - interval '30 days' ORDER BY id DESC LIMIT %(most)s"
)
