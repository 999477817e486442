"""The policy: exact propensities, respected masks, cold start, fallback, forced places."""

import math
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvllm.errors import InputError
from ruvllm.inference.types import BINS
from ruvllm.router.decision import Allowed, Decision, Tradeoff
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.manifest import Deciding
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime

FOUR = ("a", "b", "c", "d")
FEATURES = np.linspace(0, 1, 128, dtype=np.float32)
ALL = Allowed((True,) * 4, (True,) * 5)
ALL_TIERS = (True,) * 4

tier_masks = st.tuples(*[st.booleans()] * 4)
bin_masks = st.tuples(*[st.booleans()] * 5)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> RouterRuntime:
    folder: Path = tmp_path_factory.mktemp("policy") / "bundle"
    write_random_bundle(folder, tiers=FOUR)
    return RouterRuntime.load(folder)


def policy(runtime: RouterRuntime | None, epsilon: float = 0.3, floor: float | None = 0.0, seed: int = 0) -> Policy:
    return Policy(runtime, ALL_TIERS, epsilon, np.random.default_rng(seed), bins=BINS, floor=floor)


def decide(chooser: Policy, allowed: Allowed = ALL, **forced: int) -> Decision:
    return chooser.decide(FEATURES, None, allowed, **forced)


def simulate(
    chooser: Policy, allowed: Allowed, n: int
) -> tuple[Counter[tuple[int, int]], dict[tuple[int, int], float]]:
    """How often each pair was drawn, and the propensity that its decisions stated."""
    counts: Counter[tuple[int, int]] = Counter()
    stated: dict[tuple[int, int], float] = {}
    for _ in range(n):
        decision = decide(chooser, allowed)
        pair = decision.tier, decision.context_bin
        counts[pair] += 1
        assert stated.setdefault(pair, decision.propensity) == decision.propensity
    return counts, stated


def chi_square_p(statistic: float, degrees: int) -> float:
    """Upper tail by the Wilson-Hilferty approximation."""
    spread = 2 / (9 * degrees)
    deviate = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(deviate / math.sqrt(2))


@pytest.mark.parametrize("kind", ["cold", "champion", "fallback"])
def test_propensities_sum_to_one_and_are_the_frequencies(runtime: RouterRuntime, kind: str) -> None:
    chooser = policy(None if kind == "cold" else runtime, epsilon=0.6, floor=1.0 if kind == "fallback" else 0.0)
    allowed = Allowed((True, True, False, True), (True, False, True, False, True))
    n = 4000
    counts, stated = simulate(chooser, allowed, n)
    assert len(stated) == 9  # every allowed pair is drawn
    assert sum(stated.values()) == pytest.approx(1)
    statistic = sum((counts[pair] - n * p) ** 2 / (n * p) for pair, p in stated.items())
    assert chi_square_p(statistic, 8) > 0.001


@settings(max_examples=80, deadline=None)
@given(tiers=tier_masks, bins=bin_masks, epsilon=st.floats(0, 1), cold=st.booleans(), floor=st.sampled_from([0.0, 1.0]))
def test_masks_are_respected(
    runtime: RouterRuntime, tiers: tuple[bool, ...], bins: tuple[bool, ...], epsilon: float, cold: bool, floor: float
) -> None:
    chooser = policy(None if cold else runtime, epsilon, floor)
    allowed = Allowed(tiers, bins)
    if not any(tiers) or not any(bins):
        with pytest.raises(InputError, match="no tier or no context bin is allowed"):
            decide(chooser, allowed)
        return
    for _ in range(5):
        decision = decide(chooser, allowed)
        assert tiers[decision.tier]
        assert bins[BINS.index(decision.context_bin)]
        assert 0 < decision.propensity <= 1


def test_cold_start_is_uniform_and_says_so() -> None:
    decision = decide(policy(None), Allowed((True, True, False, False), (True, True, True, False, False)))
    assert decision.decided_by == "cold-start"
    assert decision.propensity == pytest.approx(1 / 6)
    assert (decision.confidence, decision.temperature, decision.top_p) == (None, 0.0, 1.0)
    assert (decision.router_version, decision.model_probs, decision.hidden) == ("", (), None)


def test_champion_takes_the_best_of_both_heads(runtime: RouterRuntime) -> None:
    outputs = runtime.decide(FEATURES, None, ALL)
    decision = decide(policy(runtime, epsilon=0.0))
    assert decision.tier == int(outputs.model_probs.argmax())
    assert decision.context_bin == BINS[int(outputs.context_probs.argmax())]
    assert (decision.decided_by, decision.propensity, decision.router_version) == ("champion", 1.0, "test")
    assert decision.confidence == pytest.approx(outputs.confidence)
    assert decision.hidden is not None
    assert (decision.hidden == outputs.hidden).all()


def test_exploration_states_both_propensities(runtime: RouterRuntime) -> None:
    chooser = policy(runtime, epsilon=0.5)
    by_kind = {decision.decided_by: decision.propensity for decision in (decide(chooser) for _ in range(200))}
    assert by_kind == pytest.approx({"champion": 0.5 + 0.5 / 20, "explore": 0.5 / 20})


def test_low_confidence_takes_the_next_tier_and_the_next_wider_bin(runtime: RouterRuntime) -> None:
    for tiers, bins in product(
        [(True,) * 4, (True, False, True, True)], [(True,) * 5, (True, True, False, False, True)]
    ):
        allowed = Allowed(tiers, bins)
        sure = decide(policy(runtime, epsilon=0.0), allowed)
        unsure = decide(policy(runtime, epsilon=0.0, floor=1.0), allowed)
        assert (unsure.decided_by, unsure.propensity) == ("fallback", 1.0)
        higher = [tier for tier in range(4) if tiers[tier] and tier > sure.tier]
        wider = [size for place, size in enumerate(BINS) if bins[place] and size > sure.context_bin]
        assert unsure.tier == min(higher, default=sure.tier)
        assert unsure.context_bin == min(wider, default=sure.context_bin)


def test_the_bundles_threshold_counts_unless_a_floor_is_given(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle", tiers=FOUR, threshold=1.0)
    strict = RouterRuntime.load(tmp_path / "bundle")
    assert decide(policy(strict, epsilon=0.0, floor=None)).decided_by == "fallback"
    assert decide(policy(strict, epsilon=0.0, floor=0.0)).decided_by == "champion"


@pytest.mark.parametrize("cold", [False, True])
def test_forced_places_are_taken_for_certain(runtime: RouterRuntime, cold: bool) -> None:
    chooser = policy(None if cold else runtime, epsilon=1.0, floor=1.0)
    both = decide(chooser, forced_tier=2, forced_bin=512)
    assert (both.tier, both.context_bin, both.propensity, both.decided_by) == (2, 512, 1.0, "forced")
    one = decide(chooser, forced_tier=2)
    assert (one.tier, one.propensity, one.decided_by) == (2, 1 / 5 if cold else 1.0, "forced")


def test_forcing_what_is_not_allowed_is_refused(runtime: RouterRuntime) -> None:
    allowed = Allowed((True, True, False, False), (True, True, False, False, False))
    with pytest.raises(InputError, match="tier 2: is not allowed here, want one of 0, 1"):
        decide(policy(runtime), allowed, forced_tier=2)
    with pytest.raises(InputError, match="context bin 300: is not allowed here, want one of 256, 512"):
        decide(policy(runtime), allowed, forced_bin=300)
    with pytest.raises(InputError, match="tier 9"):
        decide(policy(runtime), forced_tier=9)


def test_a_tier_that_the_router_never_learned_is_not_explored(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle")  # two tiers
    chooser = policy(RouterRuntime.load(tmp_path / "bundle"), epsilon=1.0)
    assert {decide(chooser).tier for _ in range(100)} == {0, 1}


def test_unknown_epsilon_is_refused(runtime: RouterRuntime) -> None:
    with pytest.raises(InputError, match=r"epsilon: got 1\.5"):
        policy(runtime, epsilon=1.5)


def test_lambda_and_mu_of_the_policy_move_its_decisions(runtime: RouterRuntime, tmp_path: Path) -> None:
    rng, outputs = np.random.default_rng(0), runtime.decide(FEATURES, None, ALL)
    place = int(outputs.context_probs.argmax())
    free = Policy(runtime, ALL_TIERS, 0.0, rng, bins=BINS, floor=0.0, tradeoff=Tradeoff(0.0, 0.0))
    dear = Policy(runtime, ALL_TIERS, 0.0, rng, bins=BINS, floor=0.0, tradeoff=Tradeoff(0.0, 1e4))
    assert decide(free).tier == int(np.argmax(outputs.quality))
    assert decide(dear).tier == int(runtime.cost[:, place].argmin())
    assert max(decide(dear).model_probs) == decide(dear).model_probs[decide(dear).tier]  # they say what was decided
    write_random_bundle(tmp_path / "spec", tiers=FOUR, deciding=Deciding("model"))
    with pytest.raises(InputError, match="trade-off"):
        Policy(RouterRuntime.load(tmp_path / "spec"), ALL_TIERS, 0.0, rng, tradeoff=Tradeoff(0.0, 1.0))


# --- deadlines ---

slow_pairs = st.frozensets(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=20)


@given(slow=slow_pairs, tiers=tier_masks, bins=bin_masks, floor=st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_what_is_too_slow_is_not_drawn_while_anything_else_is_left(
    runtime: RouterRuntime,
    slow: frozenset[tuple[int, int]],
    tiers: tuple[bool, ...],
    bins: tuple[bool, ...],
    floor: float,
) -> None:
    allowed = Allowed(tiers, bins, slow)
    left = [(t, b) for t, b in product(range(4), range(5)) if tiers[t] and bins[b]]
    in_time = [pair for pair in left if pair not in slow]
    if not left:
        return
    counts, stated = simulate(policy(runtime, floor=floor), allowed, 40)
    drawn = {(tier, BINS.index(context_bin)) for tier, context_bin in counts}
    if in_time:
        assert drawn <= set(in_time)
    else:
        assert drawn == {min(left, key=lambda pair: (pair[1], pair[0]))}
    assert all(0 < propensity <= 1 for propensity in stated.values())


def test_propensities_stay_exact_when_the_router_wants_what_is_too_slow(runtime: RouterRuntime) -> None:
    wanted = decide(policy(runtime, epsilon=0.0))
    allowed = Allowed(ALL.tiers, ALL.bins, frozenset({(wanted.tier, BINS.index(wanted.context_bin))}))
    counts, stated = simulate(policy(runtime), allowed, 6000)
    assert len(counts) == 19
    assert math.isclose(sum(stated.values()), 1.0)
    for pair, count in counts.items():
        assert abs(count / 6000 - stated[pair]) < 0.02
