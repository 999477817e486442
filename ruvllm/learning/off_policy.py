"""The report's `off_policy`: what a router would have brought on stored traffic, which another policy decided.

    n, left_out      scored answers that were used; why others were not, and how many
    logged           mean utility of what was done
    effective        rows that the estimate of each router rests on (Kish); `least` is the least of them
    candidate, champion, difference
                     doubly robust {mean, low, high} of each, and of the one minus the other, row by row. Absent where
                     fewer than 30 rows are effective: then nothing is known, and a gate is inconclusive
    estimators       ips, snips and dr of each router, whatever they rest on; null: the log has no such decision
    verdict          of the strict gate: accepted only where a gain is shown, and why

Routers are asked without exploration, each session with its own hidden state. Every place of the ladder counts as
allowed: what a request's deadline ruled out is not stored. Rewards are predicted by the champion's quality head (the
candidate's where there is none), which never saw this log, with the mean residual of each pair from the other folds
added. Answers that nobody scored are not in the log: what is said is of questions like those that get a score.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.evaluation.offpolicy import (
    ESTIMATORS,
    LEAST_EFFECTIVE,
    RESAMPLES,
    Log,
    effective_size,
    estimate,
    gate,
    importance,
)
from ruvllm.inference.types import BINS, ROUTED_BINS
from ruvllm.learning.sessions import sessions_of
from ruvllm.learning.traffic import Traffic
from ruvllm.router.batch import decide_batch
from ruvllm.router.decision import N_BINS, N_TIERS, Allowed, Decision
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime

Report = dict[str, Any]
Wide = NDArray[np.float64]

_FOLDS = 5
_SHRUNK = 10.0  # answers of a pair at which half of its mean residual is believed
_EVERY = Allowed((True,) * N_TIERS, (True,) * N_BINS)


def off_policy_report(
    traffic: Traffic,
    candidate: RouterRuntime,
    champion: RouterRuntime | None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Report:
    """See the module's docstring.

    Raises:
        BundleError: a router is of another ladder or encoder than the traffic.
    """
    routers = {"candidate": candidate, **({"champion": champion} if champion else {})}
    for runtime in routers.values():
        runtime.require(traffic.ladder, [name for name in traffic.tiers if name], traffic.encoder_id)
    about: Report = {"n": len(traffic), "left_out": dict(traffic.left_out)}
    if not len(traffic):
        return about
    log = make_log(traffic, champion or candidate, seed)
    targets = {name: target_of(runtime, traffic) for name, runtime in routers.items()}
    effective = {name: effective_size(importance(log, target)) for name, target in targets.items()}
    estimators = {name: _estimates(log, target, resamples, seed) for name, target in targets.items()}
    about |= {
        "logged": float(log.reward.mean()),
        "effective": {**effective, "least": min(effective.values())},
        "estimators": estimators,
    }
    known = min(effective.values()) >= LEAST_EFFECTIVE
    about |= {name: found["dr"] for name, found in estimators.items() if known}
    if champion is not None:
        verdict = gate(log, targets["candidate"], targets["champion"], resamples=resamples, seed=seed)
        about["verdict"] = {"accepted": verdict.accepted, "reason": verdict.reason}
        if known:
            about["difference"] = verdict.difference.as_dict()
    return about


def make_log(traffic: Traffic, predictor: RouterRuntime, seed: int = 0) -> Log:
    """The traffic over N_TIERS x N_BINS actions, with rewards predicted from rows other than each row's own."""
    action = traffic.tier * N_BINS + traffic.bin
    reward = traffic.utility
    predicted = expected_utilities(predictor, traffic)
    return Log(action, traffic.propensity, reward, predicted + _residuals(action, reward, predicted, seed))


def expected_utilities(runtime: RouterRuntime, traffic: Traffic) -> Wide:
    """(n, 20): what the router expects of every pair, as if each were a first turn."""
    quality = decide_batch(runtime, traffic.seen_by(runtime), _EVERY).quality.astype(np.float64)  # (n, 4)
    utility = runtime.levels(None)[None] + 4.0 * quality[:, :, None]  # (n, 4, 5)
    return np.asarray(utility.reshape(len(traffic), N_TIERS * N_BINS), dtype=np.float64)


def target_of(runtime: RouterRuntime, traffic: Traffic) -> Wide:
    """(n, 20): 1 at the pair that the router decides on, without exploration."""
    mask = [bool(name) for name in traffic.tiers]
    policy = Policy(runtime, mask, 0.0, np.random.default_rng(0), ROUTED_BINS)
    features = traffic.seen_by(runtime)
    target = np.zeros((len(traffic), N_TIERS * N_BINS))
    for members in sessions_of(traffic.session, traffic.turn, np.arange(len(traffic))):
        hidden = None
        for row in members:
            made: Decision = policy.decide(features[row], hidden, _EVERY)
            target[row, made.tier * N_BINS + BINS.index(made.context_bin)] = 1.0
            hidden = made.hidden
    return target


def _residuals(action: NDArray[np.int64], reward: Wide, predicted: Wide, seed: int) -> Wide:
    """(n, m): the mean residual of each action among the rows of other folds, shrunk towards 0."""
    n, m = predicted.shape
    fold = np.random.default_rng(seed).permutation(n) % _FOLDS
    off = reward - predicted[np.arange(n), action]
    made = np.zeros((n, m))
    for held in range(_FOLDS):
        others = fold != held
        counts = np.bincount(action[others], minlength=m)
        sums = np.bincount(action[others], weights=off[others], minlength=m)
        made[fold == held] = sums / (counts + _SHRUNK)
    return made


def _estimates(log: Log, target: Wide, resamples: int, seed: int) -> Report:
    found: Report = {}
    for how in ESTIMATORS:
        try:
            found[how] = estimate(log, target, how, resamples=resamples, seed=seed).value.as_dict()
        except LearningError:  # SNIPS of a policy that never does what the log did
            found[how] = None
    return found
