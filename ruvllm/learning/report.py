"""The evaluation of a router as one plain dictionary, report.json. Knows nothing of torch, files or times.

    n_train, n_test        questions trained on, questions held out
    policies.<name>        utility, quality (1-5), latency_s, cost: means over the held-out questions; regret.<figure>
                           {mean, low, high}; accuracy_tier and accuracy_pair against the oracle; accuracy_near: share
                           of decisions whose utility is within epsilon of the oracle's, which ties do not disturb
                           names: oracle, fastgrnn, champion (if any), best-fixed, always-small, always-big, random,
                           logistic-regression
    paired.<name>.<figure> regret of fastgrnn minus regret of <name>, question by question {mean, low, high}
    seen                   fastgrnn on the rows that it was trained on, n, and the same of every policy in seen.policies
    calibration            ece of the confidence over n held-out questions; bins: of each tenth of the confidence that
                           holds any, n, said (its mean) and right (the share within epsilon of the oracle)
    changes                against the champion: n held-out questions; tier and pair: how many it decides otherwise;
                           examples, the largest difference in utility first: key, from, to, gained
    forgetting             see evaluation/forgetting.py; rate is {mean, low, high}, or null with one night
    per_domain.<domain>    n, utility, quality, utility_regret, accuracy_tier of fastgrnn
    fallback               rate on the held-out questions, threshold
    cost_saved             1 - cost of fastgrnn / cost of always-big
    label_distribution     train and test: how often each tier and each bin is the label
    importance             places.<name>: utility lost on the held-out questions when the place is permuted (lost,
                           error) and the share of decisions that changed; flags: features that are constant or that
                           alone tell the label, the split or the night (feature, kind, why)
    off_policy             what candidate and champion would have brought on stored traffic, see off_policy.py; absent
                           where the run was given none
    golden_max_error       torch against the serving runtime on every question, n in golden_n
    warnings               what the reader must know

A pair counts as accurate when it is the label (min viable context) or the pair of the largest utility: two definitions
of the oracle's choice, which differ where a smaller bin is as good but was measured slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.evaluation.calibration import expected_calibration_error
from ruvllm.evaluation.forgetting import INCONCLUSIVE, Forgetting, forgetting
from ruvllm.evaluation.regret import Bootstrap, Outcomes, make_bootstrap, paired, regret
from ruvllm.inference.types import BINS
from ruvllm.learning.baselines import everywhere, fixed_rules, random_mean
from ruvllm.learning.data import Array, Rows, Snapshot
from ruvllm.learning.importance import Decide, flags, place_importance, summary
from ruvllm.learning.routing import Routed
from ruvllm.learning.targets import Pairs, Targets, Wide, quality5, take

Report = dict[str, Any]

_TENTHS = 10
_EXAMPLES = 12  # changed decisions that a report shows


@dataclass(frozen=True)
class Settings:
    epsilon: float
    resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class Judge:
    """Outcomes and labels of some rows of a snapshot."""

    snapshot: Snapshot
    targets: Targets
    rows: Rows
    settings: Settings

    def bootstrap(self) -> Bootstrap:
        return make_bootstrap(self.snapshot.group[self.rows], self.settings.resamples, self.settings.seed)

    def outcomes(self, pairs: Pairs) -> Outcomes:
        """Of decisions (m, 2)."""
        return Outcomes(*(take(values, pairs) for values in self._values()))

    def random(self) -> Outcomes:
        places = self.snapshot.places
        return Outcomes(*(random_mean(values, places) for values in self._values()))

    def _values(self) -> list[Wide]:
        s, rows = self.snapshot, self.rows
        quality = quality5(s)[rows]
        return [self.targets.utility[rows], quality, s.latency_s[rows].astype(float), s.cost[rows].astype(float)]

    def near(self, pairs: Pairs) -> NDArray[np.bool_]:
        """(m,): within epsilon of the oracle's utility."""
        utility = self.targets.utility[self.rows]
        near: NDArray[np.bool_] = take(utility, pairs) >= utility.max(axis=(1, 2)) - self.settings.epsilon
        return near

    def accuracy(self, pairs: Pairs) -> dict[str, float]:
        labels, best = self.targets.labels[self.rows], self.targets.oracle[self.rows]
        same = (pairs == labels).all(axis=1) | (pairs == best).all(axis=1)
        return {
            "accuracy_tier": float((pairs[:, 0] == labels[:, 0]).mean()),
            "accuracy_pair": float(same.mean()),
            "accuracy_near": float(self.near(pairs).mean()),
        }

    def random_accuracy(self) -> dict[str, float]:
        """Expectation of a uniform choice."""
        pairs = np.argwhere(self.snapshot.places)
        each = [self.accuracy(everywhere((int(tier), int(context)), len(self.rows))) for tier, context in pairs]
        return {name: float(np.mean([accuracy[name] for accuracy in each])) for name in each[0]}

    def policies(self, chosen: dict[str, Pairs]) -> dict[str, Report]:
        """Figures of each policy's decisions, of the oracle and of random."""
        bootstrap, oracle = self.bootstrap(), self.targets.oracle[self.rows]
        best, big = self.outcomes(oracle), self.outcomes(chosen["always-big"])

        def figures(outcomes: Outcomes, accuracy: dict[str, float]) -> Report:
            regrets = regret(outcomes, best, big, bootstrap)
            return {**outcomes.means(), "regret": {k: v.as_dict() for k, v in regrets.items()}, **accuracy}

        rules = {"oracle": oracle, **chosen}
        made = {name: figures(self.outcomes(pairs), self.accuracy(pairs)) for name, pairs in rules.items()}
        return {**made, "random": figures(self.random(), self.random_accuracy())}


@dataclass(frozen=True, eq=False)
class Contest:
    """Who decided what for all rows of the snapshot, in the order of the snapshot; a Routed is for all rows too."""

    candidate: Routed
    champion: Routed | None
    logistic: Pairs


def make_report(
    snapshot: Snapshot, targets: Targets, contest: Contest, settings: Settings, warnings: list[str]
) -> Report:
    """See the module's docstring; `golden_max_error` and the threshold are the caller's to add.

    Raises:
        LearningError: no question is held out.
    """
    judge = Judge(snapshot, targets, snapshot.test, settings)
    chosen = _decisions(snapshot, targets, contest)
    held_out = judge.policies({name: pairs[snapshot.test] for name, pairs in chosen.items()})
    near = judge.near(contest.candidate.heads[snapshot.test])
    return {
        "n_train": len(snapshot.train),
        "n_test": len(snapshot.test),
        "policies": held_out,
        "paired": _paired(judge, chosen),
        "seen": _seen(snapshot, targets, chosen, settings),
        "calibration": {
            "ece": expected_calibration_error(contest.candidate.confidence[snapshot.test], near),
            "n": len(near),
            "bins": _calibration_bins(contest.candidate.confidence[snapshot.test], near),
        },
        "changes": _changes(judge, contest),
        "forgetting": _forgetting(snapshot, targets, contest, settings).as_dict(),
        "per_domain": _per_domain(judge, chosen["fastgrnn"]),
        "cost_saved": 1.0 - held_out["fastgrnn"]["cost"] / max(held_out["always-big"]["cost"], 1e-12),
        "label_distribution": {name: _labels(snapshot, targets, rows) for name, rows in _splits(snapshot).items()},
        "warnings": warnings,
    }


def importance_report(
    snapshot: Snapshot, targets: Targets, features: Array, decide: Decide, settings: Settings
) -> Report:
    """The report's `importance`; `features` (n, 128) are what the router saw, `decide` is it on the held-out ones."""
    judge = Judge(snapshot, targets, snapshot.test, settings)
    places = place_importance(
        features[snapshot.test], decide, lambda pairs: judge.outcomes(pairs).utility, settings.seed
    )
    classes: dict[str, NDArray[Any]] = {"label": targets.tier, "split": snapshot.split, "time": snapshot.night}
    return summary(places, flags(features, classes))


def _decisions(snapshot: Snapshot, targets: Targets, contest: Contest) -> dict[str, Pairs]:
    rules = {name: everywhere(pair, len(snapshot.keys)) for name, pair in fixed_rules(snapshot, targets).items()}
    chosen = {"fastgrnn": contest.candidate.pairs, "logistic-regression": contest.logistic, **rules}
    return {**chosen, "champion": contest.champion.pairs} if contest.champion else chosen


def _paired(judge: Judge, chosen: dict[str, Pairs]) -> Report:
    bootstrap, rows = judge.bootstrap(), judge.rows
    routed = judge.outcomes(chosen["fastgrnn"][rows])
    others = {name: judge.outcomes(pairs[rows]) for name, pairs in chosen.items() if name != "fastgrnn"}
    others["random"] = judge.random()
    return {
        name: {figure: interval.as_dict() for figure, interval in paired(routed, other, bootstrap).items()}
        for name, other in others.items()
    }


def _seen(snapshot: Snapshot, targets: Targets, chosen: dict[str, Pairs], settings: Settings) -> Report:
    judge = Judge(snapshot, targets, snapshot.train, settings)
    policies = judge.policies({name: pairs[snapshot.train] for name, pairs in chosen.items()})
    return {"n": len(snapshot.train), **policies["fastgrnn"], "policies": policies}


def _forgetting(snapshot: Snapshot, targets: Targets, contest: Contest, settings: Settings) -> Forgetting:
    """Within epsilon of the oracle is correct: where two tiers tie, the label is chance and cannot be forgotten."""
    earlier = np.flatnonzero(snapshot.night < snapshot.night.max())
    if contest.champion is None or not len(earlier):
        return INCONCLUSIVE
    judge = Judge(snapshot, targets, earlier, settings)
    then, now = (judge.near(routed.pairs[earlier]) for routed in (contest.champion, contest.candidate))
    return forgetting(then, now, snapshot.night[earlier], judge.bootstrap())


def _calibration_bins(confidence: NDArray[np.float64], near: NDArray[np.bool_]) -> list[Report]:
    """Of each tenth that holds any: how many, what was said, how often it was right."""
    place = np.minimum((confidence * _TENTHS).astype(int), _TENTHS - 1)
    return [
        {
            "n": int((place == p).sum()),
            "said": float(confidence[place == p].mean()),
            "right": float(near[place == p].mean()),
        }
        for p in np.unique(place)
    ]


def _changes(judge: Judge, contest: Contest) -> Report | None:
    """What the candidate decides otherwise than the champion on the held-out questions; None without a champion."""
    if contest.champion is None:
        return None
    before, after = (routed.pairs[judge.rows] for routed in (contest.champion, contest.candidate))
    utility = judge.targets.utility[judge.rows]
    gained = take(utility, after) - take(utility, before)
    other = np.flatnonzero((before != after).any(axis=1))
    largest = other[np.argsort(-np.abs(gained[other]), kind="stable")][:_EXAMPLES]
    tiers = judge.snapshot.tiers

    def named(pair: NDArray[np.int64]) -> str:
        return f"{tiers[pair[0]]} {BINS[pair[1]]}"

    return {
        "n": len(before),
        "tier": int((before[:, 0] != after[:, 0]).sum()),
        "pair": len(other),
        "examples": [
            {"key": str(judge.snapshot.keys[judge.rows[i]]), "from": named(before[i]), "to": named(after[i]),
             "gained": float(gained[i])}
            for i in largest
        ],
    }  # fmt: skip


def _per_domain(judge: Judge, pairs: Pairs) -> Report:
    domains, found = judge.snapshot.domain[judge.rows], {}
    for domain in sorted(set(domains.tolist())):
        part = Judge(judge.snapshot, judge.targets, judge.rows[domains == domain], judge.settings)
        outcomes, best = part.outcomes(pairs[part.rows]), part.outcomes(part.targets.oracle[part.rows])
        found[domain or "unknown"] = {
            "n": len(part.rows),
            "utility": float(outcomes.utility.mean()),
            "quality": float(outcomes.quality.mean()),
            "utility_regret": float((best.utility - outcomes.utility).mean()),
            "accuracy_tier": part.accuracy(pairs[part.rows])["accuracy_tier"],
        }
    return found


def _splits(snapshot: Snapshot) -> dict[str, Rows]:
    return {"train": snapshot.train, "test": snapshot.test}


def _labels(snapshot: Snapshot, targets: Targets, rows: Rows) -> Report:
    tiers, bins = targets.tier[rows], targets.context[rows]
    return {
        "tier": {name: int((tiers == place).sum()) for place, name in enumerate(snapshot.tiers) if name},
        "context": {str(BINS[p]): int((bins == p).sum()) for p in np.flatnonzero(snapshot.bin_mask)},
    }
