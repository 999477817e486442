"""Gates: does a candidate's report keep the policy in mlflow/gates.toml? Knows nothing of MLflow, Postgres or models.

A missing figure, a figure that is not finite, or too few observations make a gate inconclusive, never passed.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ruvllm.errors import GateError, SettingsError
from ruvllm.settings import PROJECT_ROOT

POLICY_FILE = PROJECT_ROOT / "mlflow" / "gates.toml"
_RULES = ("shown", "unless-shown", "point")
_DIRECTIONS = ("at most", "at least")
_OUTCOMES = ("pass", "inconclusive", "fail")  # the later, the worse

Report = Mapping[str, Any]  # report.json, as it was parsed


@dataclass(frozen=True)
class Gate:
    """One line of the policy; mlflow/gates.toml says what each field means."""

    name: str
    metric: str
    direction: str
    threshold: float
    why: str
    minus: str = ""
    paired: str = ""
    over: str = ""
    each: str = ""
    members: tuple[str, ...] = ()
    n: str = "n_test"
    min_n: int = 0
    rule: str = "shown"
    blocks: bool = True
    reason: str = ""
    needs_champion: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))  # TOML has lists
        if self.rule not in _RULES or self.direction not in _DIRECTIONS:
            raise SettingsError(
                f"gate {self.name!r}: rule {self.rule!r} and direction {self.direction!r}, "
                f"want one of {', '.join(_RULES)} and one of {', '.join(_DIRECTIONS)}"
            )


@dataclass(frozen=True)
class GateResult:
    """What one gate measured. `interval` is the 95 % interval, None where the report has none."""

    name: str
    measured: float | None
    threshold: float
    direction: str
    n: int | None
    interval: tuple[float, float] | None
    outcome: str  # pass | fail | inconclusive
    blocks: bool
    reason: str

    @property
    def stops(self) -> bool:
        return self.blocks and self.outcome != "pass"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class GatePolicy:
    """The gates, and what differs by ladder."""

    gates: tuple[Gate, ...]
    on: Mapping[str, Mapping[str, Mapping[str, Any]]]  # gate -> ladder -> fields

    def for_ladder(self, ladder: str) -> tuple[Gate, ...]:
        return tuple(replace(gate, **self.on.get(gate.name, {}).get(ladder, {})) for gate in self.gates)


def load_policy(path: Path = POLICY_FILE) -> GatePolicy:
    """The policy in `path`.

    Raises:
        SettingsError: the file is missing or is not a policy.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["gate"]
        on = {table["name"]: table.pop("on", {}) for table in tables}
        policy = GatePolicy(tuple(Gate(**table) for table in tables), on)
        for ladder in {name for by_ladder in on.values() for name in by_ladder}:
            policy.for_ladder(ladder)
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise SettingsError(
            f"gate policy {path}: {error}; want [[gate]] tables with {', '.join(f.name for f in fields(Gate))}"
        ) from error
    return policy


def evaluate_gates(report: Report, policy: GatePolicy, ladder: str, has_champion: bool) -> list[GateResult]:
    """Every gate of the policy on `report`, in the policy's order."""
    return [_evaluate(gate, report, has_champion) for gate in policy.for_ladder(ladder)]


def require_passed(results: Sequence[GateResult], version: str) -> None:
    """Nothing, if no gate stops the candidate.

    Raises:
        GateError: names each gate that does, with what it measured.
    """
    stopped = [
        f"{r.name} ({r.outcome}: {_number(r.measured)}, want {_wanted(r)}{_also(r)})" for r in results if r.stops
    ]
    if stopped:
        raise GateError(f"version {version} is not promoted: {'; '.join(stopped)}; the policy is mlflow/gates.toml")


def table_markdown(results: Sequence[GateResult]) -> str:
    """The table that a reviewer reads in the version's description."""
    lines = [
        "| gate | measured | 95 % interval | wanted | N | outcome | blocks | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_row(result) for result in results])


@dataclass(frozen=True)
class _Measured:
    mean: float
    low: float
    high: float

    @classmethod
    def read(cls, report: Report, path: str) -> _Measured | None:
        """The figure at a dotted path; None where it is missing or not finite."""
        found: Any = report
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            found = (found.get("mean"), found.get("low"), found.get("high"))
        else:
            found = (found, found, found)
        numbers = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
        return cls(*map(float, numbers)) if len(numbers) == 3 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return (self.low, self.high) if self.low != self.high else None

    def __sub__(self, other: _Measured) -> _Measured:
        """The widest interval that the two allow: nothing is assumed about how they vary together."""
        return _Measured(self.mean - other.mean, self.low - other.high, self.high - other.low)

    def __truediv__(self, scale: float) -> _Measured:
        return _Measured(self.mean / scale, self.low / scale, self.high / scale)


def _measure(gate: Gate, report: Report) -> _Measured | None:
    if gate.paired and (paired := _Measured.read(report, gate.paired)):
        return paired
    measured = _Measured.read(report, gate.metric)
    if measured and gate.minus:
        other = _Measured.read(report, gate.minus)
        measured = measured - other if other else None
    if measured and gate.over:
        scale = _Measured.read(report, gate.over)
        measured = measured / scale.mean if scale and scale.mean > 0 else None
    return measured


def _evaluate(gate: Gate, report: Report, has_champion: bool) -> GateResult:
    result = _worst(gate, report) if gate.each else _single(gate, report)
    if gate.needs_champion and not has_champion:
        return replace(result, blocks=False, reason="no champion of this ladder yet: blocks from the second version on")
    return result


def _worst(gate: Gate, report: Report) -> GateResult:
    """The gate on each member of a section, its `member.` paths read there: the one that is worst, by name."""
    section = report.get(gate.each)
    members: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    names = gate.members or tuple(sorted(members))
    results = [_single(gate, {**report, "member": members.get(name, {})}, name) for name in names]
    return max(results, key=_badness) if results else _single(gate, {})


def _badness(result: GateResult) -> tuple[int, float]:
    sign = 1.0 if result.direction == "at most" else -1.0
    return _OUTCOMES.index(result.outcome), sign * (result.measured or 0.0)


def _single(gate: Gate, report: Report, member: str = "") -> GateResult:
    measured, n = _measure(gate, report), _Measured.read(report, gate.n)
    outcome, why = _outcome(gate, measured, n)
    reasons = [f"the worst is {member}" if member else "", gate.reason, why]
    return GateResult(
        name=gate.name,
        measured=measured.mean if measured else None,
        threshold=gate.threshold,
        direction=gate.direction,
        n=int(n.mean) if n else None,
        interval=measured.interval if measured else None,
        outcome=outcome,
        blocks=gate.blocks,
        reason="; ".join(filter(None, reasons)),
    )


def _outcome(gate: Gate, measured: _Measured | None, n: _Measured | None) -> tuple[str, str]:
    if measured is None:
        return "inconclusive", "the report does not hold this figure"
    if gate.min_n and (n is None or n.mean < gate.min_n):
        return "inconclusive", f"N is {'unknown' if n is None else int(n.mean)}, want {gate.min_n}"
    return _by_rule(gate, measured)


def _by_rule(gate: Gate, measured: _Measured) -> tuple[str, str]:
    """`best` and `worst` are the interval's ends as excess over the threshold: positive breaks it."""
    sign = 1.0 if gate.direction == "at most" else -1.0
    excess = [sign * (value - gate.threshold) for value in (measured.mean, measured.low, measured.high)]
    mean, best, worst = excess[0], min(excess[1:]), max(excess[1:])
    if gate.rule == "point":
        return ("pass" if mean <= 0 else "fail"), ""
    if best > 0:
        return "fail", "the whole interval breaks the threshold"
    if gate.rule == "unless-shown" or worst <= 0:
        return "pass", "" if worst <= 0 else "not shown to break it"
    return "inconclusive", "the interval holds the threshold"


def _wanted(result: GateResult) -> str:
    return f"{result.direction} {_number(result.threshold)}"


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.4g}"


def _also(result: GateResult) -> str:
    return f"; {result.reason}" if result.outcome == "inconclusive" and result.reason else ""


def _row(r: GateResult) -> str:
    interval = f"{_number(r.interval[0])} to {_number(r.interval[1])}" if r.interval else ""
    cells = (r.name, _number(r.measured), interval, _wanted(r), "" if r.n is None else str(r.n))
    outcome = f"**{r.outcome}**" if r.stops else r.outcome
    return "| " + " | ".join((*cells, outcome, "yes" if r.blocks else "reported", r.reason.replace("|", "/"))) + " |"
