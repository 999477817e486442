"""Which tiers and context bins a request may have: by what it demands, and by how fast the tiers are here.

Knows nothing of the router's choice among them, nor of how an answer is made.
"""

from __future__ import annotations

import logging

from ruvllm.answering.asking import Ask
from ruvllm.answering.privacy import level
from ruvllm.errors import InputError, UnknownTierError
from ruvllm.inference.backends import is_remote
from ruvllm.inference.deadlines import Paces, too_slow
from ruvllm.inference.tiers import Ladder, memory
from ruvllm.inference.types import BINS, ROUTED_BINS, Generation
from ruvllm.router.decision import N_TIERS, Allowed
from ruvllm.settings import Settings

log = logging.getLogger(__name__)
_GIB = 2**30


class Offer:
    """Of one ladder on one machine. `saw` feeds it with the pace of answers."""

    def __init__(self, settings: Settings, ladder: Ladder) -> None:
        self.settings, self.ladder = settings, ladder
        self.tier_mask = tuple(place < len(ladder.tiers) for place in range(N_TIERS))
        self._remote = frozenset(i for i, tier in enumerate(ladder.tiers) if is_remote(tier, settings))
        self._paces = [Paces() for _ in ladder.tiers]
        self._told: frozenset[tuple[int, int]] = frozenset()

    def saw(self, index: int, generation: Generation) -> None:
        self._paces[index].saw(generation)

    def deadline(self, ask: Ask) -> float:
        """Seconds that the model has."""
        return min(ask.latency_budget_s or self.settings.deadline_s, self.settings.deadline_s)

    def refused(self, ask: Ask) -> dict[int, str]:
        """Places of the ladder that the request itself rules out, and why.

        Raises:
            InputError: that is all of them.
        """
        found = {i: why for i, tier in enumerate(self.ladder.tiers) if (why := self._refusal(i, ask))}
        if len(found) == len(self.ladder.tiers):
            whys = "; ".join(f"{self.ladder.names[index]}: {why}" for index, why in found.items())
            raise InputError(f"no tier is left for this request: {whys}")
        return found

    def _refusal(self, index: int, ask: Ask) -> str:
        if index in self._remote:  # it takes no memory here
            return (
                "" if level(ask.privacy).remote else f"privacy level {ask.privacy}: a model server would see the text"
            )
        needed = memory(self.ladder.tiers[index], self.settings.n_ctx) / _GIB
        if ask.memory_gb is not None and needed > ask.memory_gb:
            return f"it takes {needed:.2f} GiB, the request has {ask.memory_gb:g}"
        return ""

    def allowed(self, ask: Ask, refused: dict[int, str]) -> Allowed:
        """What can be done in the time that the request has, at the pace of the latest answers."""
        paces = [each.pace for each in self._paces]
        slow = too_slow(paces, ask.max_tokens or self.settings.max_tokens, self.deadline(ask))
        if ask.latency_budget_s is None and slow != self._told:
            self._told = slow
            log.warning("%s", self._slowness(slow))
        tiers = tuple(there and place not in refused for place, there in enumerate(self.tier_mask))
        return Allowed(tiers, tuple(b in ROUTED_BINS for b in BINS), slow)

    def place_of(self, name: str | None, refused: dict[int, str]) -> int | None:
        """Of a tier that is forced; None where none is.

        Raises:
            UnknownTierError: the ladder has no such tier.
            InputError: the request itself rules it out.
        """
        if name is None:
            return None
        if name not in self.ladder.names:
            choices = ", ".join(("auto", *self.ladder.names))
            raise UnknownTierError(f"tier {name!r}: not in the ladder {self.ladder.name}; want one of {choices}")
        index = self.ladder.names.index(name)
        if index in refused:
            raise InputError(f"tier {name}: not allowed for this request: {refused[index]}")
        return index

    def order(self, ask: Ask, first: int, refused: dict[int, str]) -> list[int]:
        """The places that may answer: the chosen one, and, unless it was forced, those to step in for it."""
        if ask.forced_tier is not None:
            return [first]
        return [first, *(i for i in range(len(self.ladder.tiers)) if i != first and i not in refused)]

    def _slowness(self, slow: frozenset[tuple[int, int]]) -> str:
        pairs = ", ".join(f"{self.ladder.tiers[tier].name} at {BINS[place]} tokens" for tier, place in sorted(slow))
        limit = f"{self.settings.deadline_s:g} s (RUVLLM_DEADLINE_S)"
        return (
            f"too slow here for {limit}, so not offered to the router: {pairs}" if pairs else f"all fits {limit} again"
        )
