"""params.yaml as frozen records, checked once. Knows nothing of torch or of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

from ruvllm.errors import LearningError
from ruvllm.router.layout import LAYOUT
from ruvllm.router.manifest import DECIDING, MAX_HIDDEN, VARIANTS

T = TypeVar("T")

GAIN, PROMISE = "gain", "promise"  # what the fallback's threshold is chosen by


@dataclass(frozen=True)
class RouterConfig:
    variant: str
    hidden: int
    rank: int
    reset_gate: bool
    decides: str

    def __post_init__(self) -> None:
        _want(self.decides in DECIDING, "router.decides", self.decides, " or ".join(DECIDING))
        _want(self.variant in VARIANTS, "router.variant", self.variant, " or ".join(VARIANTS))
        _want(1 <= self.hidden <= MAX_HIDDEN, "router.hidden", self.hidden, f"1 to {MAX_HIDDEN}")
        _want(1 <= self.rank <= self.hidden, "router.rank", self.rank, "1 to router.hidden")
        _want(not self.reset_gate or self.variant == "spec", "router.reset_gate", True, "false for variant kusupati")


@dataclass(frozen=True)
class FeaturesConfig:
    ignored: tuple[str, ...]
    least_spread: float
    least_scale: float

    def __post_init__(self) -> None:
        unknown = sorted(set(self.ignored) - set(LAYOUT.by_name))
        _want(not unknown, "features.ignored", unknown, "names of the feature layout")
        _want(0 <= self.least_spread < 1, "features.least_spread", self.least_spread, "0 to 1")
        _want(0 < self.least_scale < 1, "features.least_scale", self.least_scale, "over 0, below 1")


@dataclass(frozen=True)
class LossConfig:
    """`order` is what the quality head's order of the tiers weighs, `distil` the share of tempered oracle utilities in
    the model head's label, `tempered` the temperature of both, in utility, and `top_k` how many tiers they speak of."""

    model: float
    context: float
    quality: float
    order: float
    distil: float
    tempered: float
    top_k: int
    utility: float
    temperature: float
    top_p: float
    confidence: float
    epsilon: float
    weight_floor: float

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            _want(value >= 0, f"loss.{entry.name}", value, "0 or more")
        _want(self.weight_floor > 0, "loss.weight_floor", self.weight_floor, "over 0")
        _want(self.distil <= 1, "loss.distil", self.distil, "0 to 1")
        _want(self.tempered > 0, "loss.tempered", self.tempered, "over 0")
        _want(self.top_k >= 1, "loss.top_k", self.top_k, "1 or more")


@dataclass(frozen=True)
class TrainingConfig:
    seed: int
    steps: int
    check_every: int
    folds: int
    learning_rate: float
    weight_decay: float
    dropout: float
    # networks whose stored settings do not name these were trained so
    curriculum: float = 0.0
    batch: int = 0

    def __post_init__(self) -> None:
        _want(self.steps >= self.check_every >= 1, "training.check_every", self.check_every, "1 to training.steps")
        _want(self.folds >= 2, "training.folds", self.folds, "2 or more")
        _want(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "over 0")
        _want(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "0 or more")
        _want(0 <= self.dropout < 1, "training.dropout", self.dropout, "0 to 1")
        _want(0 <= self.curriculum <= 1, "training.curriculum", self.curriculum, "0 to 1")
        _want(self.batch == 0 or self.batch >= 32, "training.batch", self.batch, "0, or 32 or more")


@dataclass(frozen=True)
class CompressionConfig:
    kept: float
    steps: int

    def __post_init__(self) -> None:
        _want(0 < self.kept <= 1, "compression.kept", self.kept, "over 0, at most 1")
        _want(self.steps >= 0, "compression.steps", self.steps, "0 or more")


@dataclass(frozen=True)
class SelectionConfig:
    caution: tuple[float, ...]
    caution_errors: float
    risk: float
    delta: float
    fallback: str

    def __post_init__(self) -> None:
        for name in ("risk", "delta"):
            value = getattr(self, name)
            _want(0 < value < 1, f"selection.{name}", value, "over 0, below 1")
        _want(self.fallback in (GAIN, PROMISE), "selection.fallback", self.fallback, f"{GAIN} or {PROMISE}")
        _want(bool(self.caution) and min(self.caution) >= 0, "selection.caution", self.caution, "numbers from 0 up")


@dataclass(frozen=True)
class EwcConfig:
    penalty: float
    decay: float

    def __post_init__(self) -> None:
        _want(self.penalty >= 0, "ewc.penalty", self.penalty, "0 or more")
        _want(0 <= self.decay <= 1, "ewc.decay", self.decay, "0 to 1")


@dataclass(frozen=True)
class EvaluationConfig:
    seed: int
    resamples: int
    logistic_c: float
    timing_calls: int


@dataclass(frozen=True)
class Config:
    router: RouterConfig
    features: FeaturesConfig
    loss: LossConfig
    training: TrainingConfig
    compression: CompressionConfig
    selection: SelectionConfig
    ewc: EwcConfig
    evaluation: EvaluationConfig

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_SECTIONS: dict[str, Callable[..., Any]] = {
    "router": RouterConfig, "features": FeaturesConfig, "loss": LossConfig, "training": TrainingConfig,
    "compression": CompressionConfig, "selection": SelectionConfig, "ewc": EwcConfig, "evaluation": EvaluationConfig,
}  # fmt: skip


def load_config(path: Path) -> Config:
    """The settings in a params.yaml.

    Raises:
        LearningError: the file is missing or not YAML, or a value is missing, unknown or out of range.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise LearningError(f"{path}: not read ({error}); restore params.yaml from the repository") from error
    return parse_config(document, str(path))


def parse_config(document: object, name: str = "params.yaml") -> Config:
    """See `load_config`."""
    if not isinstance(document, Mapping) or set(document) != set(_SECTIONS):
        got = sorted(document) if isinstance(document, Mapping) else type(document).__name__
        raise LearningError(f"{name}: sections {got}, want {sorted(_SECTIONS)}")
    try:
        return Config(**{key: make(**_values(document[key])) for key, make in _SECTIONS.items()})
    except TypeError as error:
        raise LearningError(f"{name}: {error}; compare it with params.yaml of the repository") from error


def _values(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}


def _want(ok: bool, name: str, got: object, wanted: str) -> None:
    if not ok:
        raise LearningError(f"params.yaml: {name} is {got!r}, want {wanted}")
