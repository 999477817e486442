"""What outcomes say beyond a router's own estimates: the posterior that Thompson sampling draws from.

Knows nothing of requests. For each tier a Bayesian linear regression (exploration.py) of the residual, quality seen
minus the router's expected quality, on its last layer's activations and a 1: without outcomes the mean is the router's
own estimate, and every new one moves it. The outcomes are the oracle's, and the scored answers that this very router
decided (others' features were made with other transforms). First turns only: a session's hidden state is not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm.inference.prompt import PROMPT_VERSION
from ruvllm.router.batch import decide_batch
from ruvllm.router.decision import N_BINS, N_TIERS, Allowed
from ruvllm.router.exploration import LinearPosterior, fit_posterior
from ruvllm.router.layout import LAYOUT, N_FEATURES
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.transforms import apply_transforms

if TYPE_CHECKING:
    from ruvllm.database.pool import Database

Array = NDArray[np.float32]
Wide = NDArray[np.float64]

LATEST = 2048  # questions of the oracle, and answers, that are read


class Explorer(Protocol):
    """Whatever knows a posterior for a router; None: not yet."""

    def posterior(self, runtime: RouterRuntime) -> LinearPosterior | None: ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """Questions and what tiers scored on them, NaN where a tier was not run."""

    features: Array  # (n, 128), as the router sees them
    quality: Wide  # (n, 4) in [0, 1]


def activations(hidden: NDArray[np.floating]) -> Wide:
    """Last layer's (..., H) -> (..., H + 1): a 1 behind, so that a tier may be off everywhere alike."""
    return np.concatenate([hidden, np.ones((*hidden.shape[:-1], 1))], axis=-1, dtype=np.float64)


def believe(runtime: RouterRuntime, evidence: Evidence) -> LinearPosterior:
    """The posterior after that evidence; without any, its prior."""
    if not len(evidence.features):
        return fit_posterior(np.zeros((0, runtime.hidden_size + 1)), np.zeros((0, N_TIERS)))
    decided = decide_batch(runtime, evidence.features, Allowed((True,) * N_TIERS, (True,) * N_BINS))
    return fit_posterior(activations(decided.hidden), evidence.quality - decided.quality)


def read_evidence(database: Database, runtime: RouterRuntime, tiers: Sequence[str]) -> Evidence:
    """The latest outcomes of the ladder's `tiers`, smallest first.

    Raises:
        DatabaseError: Postgres is away.
    """
    given = {
        "layout": LAYOUT.hash, "tiers": list(tiers), "version": PROMPT_VERSION, "most": LATEST,
        "router": runtime.version, "ladder": runtime.ladder,
    }  # fmt: skip
    with database.transaction() as connection:
        cursor = connection.cursor(binary=True)
        questions = cursor.execute(_QUESTIONS, given).fetchall()
        runs = cursor.execute(_RUNS, {**given, "keys": [row[0] for row in questions]}).fetchall()
        answers = cursor.execute(_ANSWERS, given).fetchall()
    place = {key: row for row, (key, *_) in enumerate(questions)}
    quality = np.full((len(questions) + len(answers), N_TIERS), np.nan)
    for key, tier, mean in runs:
        quality[place[key], tiers.index(tier)] = mean
    for row, (tier, scored, _) in enumerate(answers, start=len(questions)):
        quality[row, tiers.index(tier)] = scored
    features = np.concatenate([_seen_by(runtime, questions), _table([row[2] for row in answers], N_FEATURES)])
    return Evidence(features, quality)


class Beliefs:
    """Posteriors of the routers that were asked about; any number ask, one refreshes. `tiers`: the ladder's names."""

    def __init__(self, database: Database, tiers: Sequence[str]) -> None:
        self._database, self._tiers = database, tuple(tiers)
        self._posteriors: dict[str, LinearPosterior | None] = {}
        self._asked: dict[str, RouterRuntime] = {}

    def posterior(self, runtime: RouterRuntime) -> LinearPosterior | None:
        """Of the outcomes at the last refreshing; None where this router was not known then. Reads no database."""
        if runtime.sha256 not in self._asked:
            self._asked = {**self._last_asked(), runtime.sha256: runtime}
        return self._posteriors.get(runtime.sha256)

    def refresh(self) -> None:
        """Read the outcomes anew, for the routers that were asked about.

        Raises:
            DatabaseError: Postgres is away; what was believed stays.
        """
        asked = self._asked
        self._posteriors = {
            sha256: believe(runtime, read_evidence(self._database, runtime, self._tiers))
            for sha256, runtime in asked.items()
        }

    def _last_asked(self) -> dict[str, RouterRuntime]:
        """The last one, so that a champion and a candidate have theirs, and no other is kept for ever."""
        return dict(list(self._asked.items())[-1:])


def _seen_by(runtime: RouterRuntime, questions: Sequence[tuple[str, list[float], list[float]]]) -> Array:
    """Features with this router's own transforms; what a first turn lacks is 0 either way."""
    features = _table([row[1] for row in questions], N_FEATURES)
    if runtime.transforms is None or not questions:
        return features
    return apply_transforms(features, np.array([row[2] for row in questions], dtype=np.float32), runtime.transforms)


def _table(rows: Sequence[Sequence[float]], width: int) -> Array:
    return np.array(rows, dtype=np.float32).reshape(len(rows), width)


_QUESTIONS = """
    SELECT key, features, embedding FROM learning.oracle_queries
    WHERE layout_hash = %(layout)s AND turn = 1 ORDER BY created_at DESC, key DESC LIMIT %(most)s
"""
_RUNS = """
    WITH newest AS (
        SELECT DISTINCT ON (tier) tier, model_sha256 FROM learning.oracle_runs
        WHERE tier = ANY(%(tiers)s) AND prompt_version = %(version)s ORDER BY tier, id DESC
    )
    SELECT r.query, r.tier, avg(r.quality)::float8 FROM learning.oracle_runs r
    JOIN newest n ON n.tier = r.tier AND n.model_sha256 = r.model_sha256
    WHERE r.query = ANY(%(keys)s) AND r.prompt_version = %(version)s GROUP BY r.query, r.tier
"""
_ANSWERS = """
    SELECT tier, quality::float8, features FROM serving.interactions
    WHERE router_version = %(router)s AND ladder = %(ladder)s AND quality IS NOT NULL AND turn = 1
      AND tier = ANY(%(tiers)s) AND layout_hash = %(layout)s
    ORDER BY id DESC LIMIT %(most)s
"""
