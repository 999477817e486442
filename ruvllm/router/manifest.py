"""What a router bundle says about itself: the record and its JSON. Knows nothing of files or arrays.

A manifest is validated when it is made, so one that was read and one about to be written obey the same rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ruvllm.errors import BundleError
from ruvllm.router.decision import N_TIERS

FORMAT = 2  # 1 had no quality head and no linear path
KIND = "ruvllm-router"
VARIANTS = ("spec", "kusupati")
QUALITY, MODEL = "quality", "model"  # which head decides
DECIDING = (QUALITY, MODEL)
GOLDEN_TOLERANCE = 1e-5
MAX_HIDDEN = 1024

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}")  # it goes into a response header
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[a-z]+\.safetensors")  # never a path: who fetches a bundle joins these names to a folder


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Calibration:
    """Confidence is sigmoid(logit / temperature); below `threshold` the fallback policy acts."""

    temperature: float = 1.0
    threshold: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Deciding:
    """Which head chooses the tier. `quality`: argmax of 1 + 4 Q - lambda L - mu C; `model`: the specification's head.

    model_probs are softmax(utility / sharpness) in the first case, the head's own in the second.
    """

    head: str = QUALITY
    latency_weight: float = 0.0  # lambda, per second
    cost_weight: float = 0.0  # mu
    sharpness: float = 1.0


@dataclass(frozen=True)
class Manifest:
    """`tiers`: four names, smallest tier first, '' where the ladder has none. `write_bundle` fills in `files`.

    Raises:
        BundleError: a field is out of its range.
    """

    version: str
    created_at: str  # ISO 8601
    ladder: str
    tiers: tuple[str, ...]
    variant: str
    hidden: int
    layout_hash: str
    encoder_id: str
    snapshot: str  # digest of the snapshot it was trained on
    metrics: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    deciding: Deciding = field(default_factory=Deciding)
    tolerance: float = GOLDEN_TOLERANCE  # of the golden outputs, absolute
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("version", "created_at", "ladder", "variant", "layout_hash", "encoder_id", "snapshot"):
            _want(isinstance(getattr(self, name), str), name, getattr(self, name), "a text")
        _want(_VERSION.fullmatch(self.version), "version", self.version, "letters, digits and ._:+-, at most 100")
        _want(self.ladder, "ladder", self.ladder, "the ladder's name")
        _want(_are_tiers(self.tiers), "tiers", self.tiers, "4 different names, the absent ones last and empty")
        _want(self.variant in VARIANTS, "variant", self.variant, " or ".join(VARIANTS))
        _want(_is_int(self.hidden) and 1 <= self.hidden <= MAX_HIDDEN, "hidden", self.hidden, f"1 to {MAX_HIDDEN}")
        _want(_DIGEST.fullmatch(self.layout_hash), "layout_hash", self.layout_hash, "a sha256")
        _want(self.encoder_id, "encoder_id", self.encoder_id, "the encoder's id")
        for name in self.files:
            _want(_FILE.fullmatch(name), "file name", name, "a plain name ending in .safetensors")
        _want_numbers("metrics", self.metrics)
        _want_numbers("calibration details", self.calibration.details)
        temperature, threshold = self.calibration.temperature, self.calibration.threshold
        _want(_is_number(temperature) and temperature > 0, "calibration temperature", temperature, "a number over 0")
        _want(_is_number(threshold) and 0 <= threshold <= 1, "calibration threshold", threshold, "0 to 1")
        self._check_deciding()
        tolerance = self.tolerance
        _want(_is_number(tolerance) and 0 < tolerance <= GOLDEN_TOLERANCE, "tolerance", tolerance, "at most 1e-5")

    def _check_deciding(self) -> None:
        _want(self.deciding.head in DECIDING, "deciding head", self.deciding.head, " or ".join(DECIDING))
        for name in ("latency_weight", "cost_weight", "sharpness"):
            value = getattr(self.deciding, name)
            least = 1e-6 if name == "sharpness" else 0.0
            _want(_is_number(value) and value >= least, f"deciding {name}", value, f"a number of at least {least:g}")

    def to_json(self) -> bytes:
        """Canonical: the same manifest gives the same bytes."""
        document = {
            "format": FORMAT,
            "kind": KIND,
            **{name: getattr(self, name) for name in _PLAIN},
            "tiers": list(self.tiers),
            "metrics": dict(self.metrics),
            "calibration": {**vars(self.calibration), "details": dict(self.calibration.details)},
            "deciding": vars(self.deciding),
            "files": {name: vars(entry) for name, entry in self.files.items()},
        }
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=True).encode() + b"\n"


_PLAIN = (
    "version", "created_at", "ladder", "variant", "hidden", "layout_hash", "encoder_id", "snapshot", "tolerance",
)  # fmt: skip
_KEYS = {"format", "kind", "tiers", "metrics", "calibration", "deciding", "files", *_PLAIN}


def parse_manifest(content: bytes) -> Manifest:
    """The manifest that `to_json` wrote.

    Raises:
        BundleError: it is not JSON, of another format or kind, or a field is missing, unknown or out of range.
    """
    document = _object(content)
    _want(document.get("format") == FORMAT, "format", document.get("format"), str(FORMAT))
    _want(document.get("kind") == KIND, "kind", document.get("kind"), KIND)
    _want(set(document) == _KEYS, "keys", sorted(set(document) ^ _KEYS), "no missing and no unknown key")
    try:
        return Manifest(
            **{name: document[name] for name in _PLAIN},
            tiers=tuple(document["tiers"]),
            metrics=dict(document["metrics"]),
            calibration=Calibration(**document["calibration"]),
            deciding=Deciding(**document["deciding"]),
            files={name: FileEntry(**entry) for name, entry in document["files"].items()},
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"manifest.json: {error}; fetch the bundle again") from error


def _object(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json: not JSON ({error}); fetch the bundle again") from error
    _want(isinstance(document, dict), "content", type(document).__name__, "a JSON object")
    return document  # type: ignore[no-any-return]  # checked above


def _want(ok: object, name: str, got: object, wanted: str) -> None:
    if not ok:
        raise BundleError(f"manifest.json: {name} is {got!r}, want {wanted}")


def _want_numbers(name: str, numbers: Mapping[str, float]) -> None:
    for key, value in numbers.items():
        _want(_is_number(value), f"{name} {key}", value, "a finite number")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # an int has no limit


def _are_tiers(tiers: tuple[str, ...]) -> bool:
    if len(tiers) != N_TIERS or not all(isinstance(name, str) for name in tiers):
        return False
    present = [name for name in tiers if name]
    return bool(present) and len(set(present)) == len(present) and tuple(tiers[: len(present)]) == tuple(present)
