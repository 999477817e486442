"""Where an engine starts on a prompt: at the longest kept state that the prompt begins with. Knows nothing of answers.

[static][history][context][question]: the state at the end of `static` and, where there is one, at the end of `history`
is kept when it is first reached. `context` was retrieved for one question, so a state behind it would not come again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from ruvllm.inference.halt import Halt
from ruvllm.inference.snapshots import Snapshot, Snapshots

NOTHING = Snapshot((), b"")
MIN_PIECE = 8  # tokens: a shorter piece goes through kernels that round otherwise, so a prompt is not cut into such


class Stateful(Protocol):
    """What is needed of `Engine` here."""

    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def state_bytes(self) -> int: ...
    def evaluate(self, tokens: Sequence[int], halt: Halt) -> None: ...
    def snapshot(self) -> Snapshot: ...
    def restore(self, snapshot: Snapshot) -> None: ...


@dataclass(frozen=True)
class Tokens:
    """A prompt in token ids."""

    static: tuple[int, ...]
    history: tuple[int, ...]
    context: tuple[int, ...]
    question: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.static) + len(self.history) + len(self.context) + len(self.question)

    @property
    def conversation(self) -> tuple[int, ...]:
        return self.static + self.history

    @property
    def before_question(self) -> tuple[int, ...]:
        return self.static + self.history + self.context

    @property
    def all(self) -> tuple[int, ...]:
        return self.before_question + self.question


class Start(NamedTuple):
    """The state that the engine stands at, where it is kept, and how many of its tokens were not evaluated now."""

    kept: Snapshot | None
    cached: int


def reach(engine: Stateful, snapshots: Snapshots, boundaries: Sequence[tuple[int, ...]], halt: Halt) -> Start:
    """Bring the engine to the last of `boundaries`, each of which begins with the one before it.

    What is missing is evaluated and its states are kept; a few missing tokens are left to what is evaluated next.
    """
    kept = snapshots.longest(boundaries[-1])
    engine.restore(kept or NOTHING)
    cached = len(engine.tokens)
    for boundary in boundaries:
        missing = boundary[len(engine.tokens) :]
        if len(missing) >= MIN_PIECE or not engine.tokens:
            engine.evaluate(missing, halt)
            kept = _keep(engine, snapshots)
    return Start(kept, cached)


def _keep(engine: Stateful, snapshots: Snapshots) -> Snapshot | None:
    """A state too large for the budget is not even copied."""
    if not snapshots.fits(engine.state_bytes):
        return None
    snapshot = engine.snapshot()
    return snapshot if snapshots.keep(snapshot) else None


def departures(prompts: Sequence[tuple[int, ...]], least: int) -> list[int]:
    """How many tokens the first prompt shares with those that follow, ascending, as long as it is `least` or more.

    Neither the first prompt nor one that follows has only a few tokens behind such a place.
    """
    places: set[int] = set()
    shared = len(prompts[0])
    for one, other in pairwise(prompts):
        shared = min(shared, _common(one, other), len(one) - MIN_PIECE, len(other) - MIN_PIECE)
        if shared < least:
            break
        places.add(shared)
    return sorted(places)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
