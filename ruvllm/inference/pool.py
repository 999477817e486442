"""The models of a ladder within a memory budget, each in its process. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from ruvllm.errors import UnknownTierError
from ruvllm.inference.budget import MemoryBudget, models_memory
from ruvllm.inference.machine import repacks
from ruvllm.inference.sizing import held_bytes
from ruvllm.inference.supervised import Starter, SupervisedModel, TierState, WorkerModel
from ruvllm.inference.tiers import Ladder, Tier, memory
from ruvllm.settings import Settings

__all__ = ["ModelPool", "Starter", "SupervisedModel", "TierState", "WorkerModel"]


class ModelPool:
    """`model(i)` is the ladder's i-th tier, safe to use from several threads; close it, or use it as a context manager.

    `threads` per model: None takes the setting, whose 0 measures at start. Loaded models stay within
    `settings.models_memory_mb`: the one used least recently leaves for another, unless it works.
    """

    def __init__(
        self, settings: Settings, ladder: Ladder, threads: int | None = None, start: Starter | None = None
    ) -> None:
        self.ladder = ladder
        self.budget = MemoryBudget(models_memory(settings))
        count = settings.threads if threads is None else threads
        starter = start or (lambda tier: _start(tier, settings, count))
        self._models: Sequence[SupervisedModel] = [
            SupervisedModel(tier, starter, budget=self.budget, memory=_memory(tier, settings)) for tier in ladder.tiers
        ]

    @property
    def waiting(self) -> int:
        """Requests that a model is answering or that wait for one."""
        return sum(model.busy for model in self._models)

    @property
    def states(self) -> list[TierState]:
        """Of every tier, in the ladder's order; asks no process."""
        return [model.state for model in self._models]

    @property
    def ready(self) -> bool:
        """Whether any tier is loaded and answers."""
        return any(state.ready for state in self.states)

    def model(self, index: int) -> SupervisedModel:
        """Starts nothing yet: the first request does.

        Raises:
            UnknownTierError: the ladder has no such place.
        """
        if not 0 <= index < len(self._models):
            raise UnknownTierError(
                f"tier {index}: the ladder {self.ladder.name} has places 0 to {len(self._models) - 1}"
            )
        return self._models[index]

    def warm(self) -> None:
        """Loads the tiers, smallest first, as long as they fit beside one another; the others wait for a request."""
        for model in self._models:
            if self.budget.taken + model.memory <= self.budget.limit:
                model.start()

    def close(self) -> None:
        for model in self._models:
            model.close()

    def __enter__(self) -> ModelPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start(tier: Tier, settings: Settings, threads: int) -> WorkerModel:
    from ruvllm.inference.backends import start  # needs an HTTP client, which not every ladder does

    return start(tier, settings, threads)


def _memory(tier: Tier, settings: Settings) -> int:
    """Bytes that the tier is expected to take here: none where servers answer for it."""
    from ruvllm.inference.backends import is_remote

    return 0 if is_remote(tier, settings) else memory(tier, settings.n_ctx, repacks()) + _states(tier, settings)


def _states(tier: Tier, settings: Settings) -> int:
    """Bytes of saved prompt states that its process may come to hold."""
    kept = settings.snapshots_mb * 2**20
    return held_bytes(tier.shape, min(settings.n_ctx, tier.n_ctx), kept) if tier.shape else kept
