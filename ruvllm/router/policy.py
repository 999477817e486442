"""From the router's outputs to one decision, with the exact probability of having drawn it. Knows nothing of features.

epsilon-greedy over the allowed (tier, bin) pairs that meet the deadline; without a router uniform over them (cold
start); where the router is not confident, the greedy pair is the fallback's. With an explorer the tier is drawn by
Thompson sampling and the bin by epsilon-greedy; a fallback, and a router whose posterior is not known yet, stay with
epsilon. Caution has no say in the draw: it is for using what is known, not for finding out. The propensity is that of
the pair, however it came to be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError
from ruvllm.inference.types import BINS, ROUTED_BINS
from ruvllm.router.beliefs import Explorer, activations
from ruvllm.router.decision import N_TIERS, Allowed, Decision, RouterOutputs, Tradeoff
from ruvllm.router.exploration import epsilon_greedy, thompson
from ruvllm.router.manifest import QUALITY
from ruvllm.router.runtime import RouterRuntime

Array = NDArray[np.float32]
Pair = tuple[int, int]  # index of the tier, index of the bin

_COLD_TEMPERATURE, _COLD_TOP_P = 0.0, 1.0
_QUALITY_SPAN = 4.0  # utility on 1 to 5 of quality in [0, 1]


@dataclass(frozen=True)
class _Draw:
    pair: Pair
    propensity: float
    decided_by: str


class Policy:
    """Decides for one ladder. `floor` overrides the bundle's confidence threshold; `rng` draws the exploration.

    `tradeoff` stands for the lambda and mu that the bundle was trained with; with `explorer` Thompson sampling draws
    the tier.

    Raises:
        InputError: a setting is out of range, or the bundle's deciding head cannot trade or be drawn from.
    """

    def __init__(
        self,
        runtime: RouterRuntime | None,
        tier_mask: Sequence[bool],
        epsilon: float,
        rng: np.random.Generator,
        bins: Sequence[int] = ROUTED_BINS,
        floor: float | None = None,
        tradeoff: Tradeoff | None = None,
        explorer: Explorer | None = None,
    ) -> None:
        if len(tier_mask) != N_TIERS:
            raise InputError(f"tier mask: got {len(tier_mask)} places, want {N_TIERS}")
        if not 0 <= epsilon <= 1:
            raise InputError(f"epsilon: got {epsilon}, want 0 to 1")
        self.runtime = runtime
        if runtime is not None and tradeoff is not None:
            runtime.levels(tradeoff)  # refuses at once what would be refused at every request
        if runtime is not None and explorer is not None and runtime.manifest.deciding.head != QUALITY:
            raise InputError(
                f"Thompson sampling: router {runtime.version} decides by its {runtime.manifest.deciding.head} head,"
                " want expected qualities; train with router.decides: quality, or set RUVLLM_EXPLORER=epsilon-greedy"
            )
        self._epsilon, self._rng, self._tradeoff, self._explorer = epsilon, rng, tradeoff, explorer
        present = tuple(bool(name) for name in runtime.tiers) if runtime else (True,) * N_TIERS
        self._mask = Allowed(_both(tier_mask, present), tuple(context_bin in bins for context_bin in BINS))
        self._floor = floor if floor is not None else runtime.threshold if runtime else 0.0

    @property
    def version(self) -> str:
        """The router's version; '' without one."""
        return self.runtime.version if self.runtime else ""

    def decide(
        self,
        features: Array,
        hidden: Array | None,
        allowed: Allowed,
        forced_tier: int | None = None,
        forced_bin: int | None = None,
    ) -> Decision:
        """Decide on features (128,) and the session's hidden state (H,), None on its first turn.

        What the caller forces is not drawn: with both forced the propensity is 1; with one forced the router's best of
        what is left is taken, without exploration and fallback, propensity 1; without a router it is drawn uniformly.

        Raises:
            InputError: nothing is allowed, or what is forced is not.
        """
        left = self._left(allowed, forced_tier, forced_bin)
        pairs = _pairs(left)
        forced = forced_tier is not None or forced_bin is not None
        if self.runtime is None:
            return _cold(self._uniform(pairs, "forced" if forced else "cold-start"))
        outputs = self.runtime.decide(features, hidden, left, self._tradeoff)
        greedy = _best(outputs, pairs)
        if forced:
            return _warm(_Draw(greedy, 1.0, "forced"), outputs, self.version)
        decided_by = "champion"
        if outputs.confidence < self._floor:
            greedy, decided_by = _step_up(greedy, left, pairs), "fallback"
        draw = self._thompson(outputs, greedy, pairs) if decided_by == "champion" else None
        return _warm(draw or self._explore(greedy, pairs, decided_by), outputs, self.version)

    def _left(self, allowed: Allowed, forced_tier: int | None, forced_bin: int | None) -> Allowed:
        """The places that may be chosen now."""
        left = Allowed(_both(self._mask.tiers, allowed.tiers), _both(self._mask.bins, allowed.bins), allowed.too_slow)
        if not any(left.tiers) or not any(left.bins):
            raise InputError("routing: no tier or no context bin is allowed, want at least one of each")
        if forced_tier is not None:
            left = replace(left, tiers=_only("tier", forced_tier, range(N_TIERS), left.tiers))
        if forced_bin is not None:
            left = replace(left, bins=_only("context bin", forced_bin, BINS, left.bins))
        return left

    def _uniform(self, pairs: list[Pair], decided_by: str) -> _Draw:
        return _Draw(pairs[int(self._rng.integers(len(pairs)))], 1.0 / len(pairs), decided_by)

    def _thompson(self, outputs: RouterOutputs, greedy: Pair, pairs: list[Pair]) -> _Draw | None:
        """None where there is no posterior to draw from."""
        posterior = self._explorer.posterior(self.runtime) if self._explorer and self.runtime else None
        if posterior is None:
            return None
        feasible = [any(pair[0] == tier for pair in pairs) for tier in range(N_TIERS)]
        expected = np.array(outputs.utility) / _QUALITY_SPAN  # in units of quality, as the posterior
        tier = thompson(posterior, activations(outputs.hidden), feasible, self._rng, expected=expected)
        bins = [(tier.place, place) in pairs for place in range(len(BINS))]
        chosen = epsilon_greedy(outputs.context_probs.astype(np.float64), bins, self._epsilon, self._rng)
        pair = tier.place, chosen.place
        return _Draw(pair, tier.propensity * chosen.propensity, "champion" if pair == greedy else "explore")

    def _explore(self, greedy: Pair, pairs: list[Pair], decided_by: str) -> _Draw:
        explored = self._epsilon / len(pairs)
        pair = greedy
        if self._rng.random() < self._epsilon:
            pair = pairs[int(self._rng.integers(len(pairs)))]
        if pair == greedy:
            return _Draw(greedy, min(1.0, 1.0 - self._epsilon + explored), decided_by)
        return _Draw(pair, explored, "explore")


def _cold(draw: _Draw) -> Decision:
    return Decision(
        tier=draw.pair[0],
        context_bin=BINS[draw.pair[1]],
        temperature=_COLD_TEMPERATURE,
        top_p=_COLD_TOP_P,
        confidence=None,
        propensity=draw.propensity,
        decided_by=draw.decided_by,
        router_version="",
        model_probs=(),
        context_probs=(),
    )


def _warm(draw: _Draw, outputs: RouterOutputs, version: str) -> Decision:
    return Decision(
        tier=draw.pair[0],
        context_bin=BINS[draw.pair[1]],
        temperature=outputs.temperature,
        top_p=outputs.top_p,
        confidence=outputs.confidence,
        propensity=draw.propensity,
        decided_by=draw.decided_by,
        router_version=version,
        model_probs=tuple(outputs.model_probs.tolist()),
        context_probs=tuple(outputs.context_probs.tolist()),
        hidden=outputs.hidden,
    )


def _pairs(left: Allowed) -> list[Pair]:
    """Where everything is too slow, the least of it: the smallest tier with the smallest bin."""
    pairs = list(product(_places(left.tiers), _places(left.bins)))
    return [pair for pair in pairs if pair not in left.too_slow] or [min(pairs, key=lambda pair: (pair[1], pair[0]))]


def _best(outputs: RouterOutputs, pairs: Sequence[Pair]) -> Pair:
    """The router's own choice, or, where that is too slow, the likeliest of what is left."""
    wanted = (int(outputs.model_probs.argmax()), int(outputs.context_probs.argmax()))
    if wanted in pairs:
        return wanted
    return max(pairs, key=lambda pair: float(outputs.model_probs[pair[0]]) * float(outputs.context_probs[pair[1]]))


def _places(mask: Sequence[bool]) -> list[int]:
    return [place for place, ok in enumerate(mask) if ok]


def _step_up(greedy: Pair, left: Allowed, pairs: Sequence[Pair]) -> Pair:
    """The next tier up and the next wider bin, where they are allowed and in time."""
    higher = _next(greedy[0], left.tiers), _next(greedy[1], left.bins)
    return higher if higher in pairs else greedy


def _next(place: int, mask: Sequence[bool]) -> int:
    return next((higher for higher in _places(mask) if higher > place), place)


def _both(one: Sequence[bool], other: Sequence[bool]) -> tuple[bool, ...]:
    if len(one) != len(other):
        raise InputError(f"allowed places: got {len(other)}, want {len(one)}")
    return tuple(bool(a and b) for a, b in zip(one, other, strict=True))


def _only(what: str, forced: int, places: Sequence[int], mask: Sequence[bool]) -> tuple[bool, ...]:
    if forced not in places or not mask[places.index(forced)]:
        choices = ", ".join(str(places[place]) for place in _places(mask))
        raise InputError(f"{what} {forced}: is not allowed here, want one of {choices}")
    return tuple(place == forced for place in places)
