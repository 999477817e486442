"""What a night's report shows, as records; knows nothing of HTML, charts or where the figures came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Group:
    """Answers of one tier or domain. Quality 0 to 1 over the `scored` ones; None where none was."""

    name: str
    answers: int
    scored: int
    quality: float | None
    p50_ms: float
    p95_ms: float
    cost: float


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval over n observations."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Night:
    """One night's place in the trends; None where the night did not come to it."""

    night: int
    questions: int
    regret: Interval | None
    forgetting: Interval | None
    nodes: int | None
    edges: int | None
    merged: int | None
    version: str
    promoted: bool


@dataclass(frozen=True)
class Tenth:
    """Decisions of one tenth of the confidence: what it said, how often it was right."""

    n: int
    said: float
    right: float


@dataclass(frozen=True)
class Change:
    """A held-out question that the candidate decides otherwise than the champion; `gained` in utility."""

    question: str
    before: str
    after: str
    gained: float


@dataclass(frozen=True)
class Target:
    """A figure of the specification beside what was measured; `measured` None: not measured, and `note` says why."""

    what: str
    wanted: str
    measured: float | None
    n: int
    met: bool | None
    note: str = ""


@dataclass(frozen=True)
class NightReport:
    """Everything that the page shows; `policies` and `gates` are rows as the steps evaluate and propose keep them."""

    night: int
    cycle_id: str
    version: str
    champion: str
    promoted: bool
    why_not: str
    tiers: Sequence[Group]
    domains: Sequence[Group]
    nights: Sequence[Night]
    policies: Sequence[Mapping[str, Any]]
    n_test: int
    n_train: int
    per_domain: Mapping[str, Mapping[str, Any]]
    ece: float | None
    tenths: Sequence[Tenth]
    deciders: Sequence[Group] = ()  # champion, explore, fallback, cascade, ...
    changed: Mapping[str, int] = field(default_factory=dict)  # n, tier, pair; empty without a champion
    changes: Sequence[Change] = ()
    gates: Sequence[Mapping[str, Any]] = ()
    targets: Sequence[Target] = ()
    cost_saved: float | None = None
    warnings: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each step
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def answers(self) -> int:
        return sum(group.answers for group in self.tiers)
