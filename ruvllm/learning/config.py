"""params.yaml as frozen records, checked once. Knows nothing of torch or of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

from ruvllm.errors import LearningError
from ruvllm.router.layout import LAYOUT
from ruvllm.router.manifest import MAX_HIDDEN, VARIANTS

T = TypeVar("T")


@dataclass(frozen=True)
class RouterConfig:
    variant: str
    hidden: int
    rank: int
    reset_gate: bool

    def __post_init__(self) -> None:
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
    model: float
    context: float
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


@dataclass(frozen=True)
class TrainingConfig:
    seed: int
    steps: int
    check_every: int
    folds: int
    learning_rate: float
    weight_decay: float
    dropout: float

    def __post_init__(self) -> None:
        _want(self.steps >= self.check_every >= 1, "training.check_every", self.check_every, "1 to training.steps")
        _want(self.folds >= 2, "training.folds", self.folds, "2 or more")
        _want(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "over 0")
        _want(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "0 or more")
        _want(0 <= self.dropout < 1, "training.dropout", self.dropout, "0 to 1")


@dataclass(frozen=True)
class SelectionConfig:
    caution: tuple[float, ...]
    caution_errors: float

    def __post_init__(self) -> None:
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
    selection: SelectionConfig
    ewc: EwcConfig
    evaluation: EvaluationConfig

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_SECTIONS: dict[str, Callable[..., Any]] = {
    "router": RouterConfig, "features": FeaturesConfig, "loss": LossConfig, "training": TrainingConfig,
    "selection": SelectionConfig, "ewc": EwcConfig, "evaluation": EvaluationConfig,
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
