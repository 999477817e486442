"""One tier as judge, with its stored scores: what the CLI and measurements open. Knows nothing of how it looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ruvllm.database.pool import Database
from ruvllm.errors import UnknownTierError
from ruvllm.evaluation.agreement import RESAMPLES
from ruvllm.inference.files import ensure, verify
from ruvllm.inference.judge.judge import Judge, judge_version
from ruvllm.inference.judge.labels import LabelSource, calibrate, label_source
from ruvllm.inference.judge.prompt import template_hash
from ruvllm.inference.judge.records import Item, Judged
from ruvllm.inference.judge.scoring import score_all
from ruvllm.inference.judge.store import Calibration, JudgeStore, Named
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, Tier, active_ladder
from ruvllm.inference.types import Model
from ruvllm.progress import Progress, silent
from ruvllm.settings import Settings


def named(tier: Tier, sha256: str) -> Named:
    """The judge that a tier's file makes.

    Raises:
        InputError: there is no rubric for the tier's style.
    """
    return Named(judge_version(sha256, tier.style), tier.name, sha256, template_hash(tier.style))


class Judging:
    """Scores, holds against gold and decides, for one judge and the database's tenant."""

    def __init__(self, database: Database, model: Model, tier: Tier, sha256: str, deadline_s: float) -> None:
        self.database, self.named = database, named(tier, sha256)
        self._store = JudgeStore(database)
        self._judge = Judge(model, tier.style, sha256, deadline_s)

    def score(self, items: Sequence[Item], progress: Progress = silent) -> list[Judged]:
        """A verdict per item, in order; see `scoring.score_all`."""
        return score_all(self._store, self._judge, items, progress)

    def calibrate(
        self, sets: Mapping[str, Sequence[Item]], progress: Progress = silent, resamples: int = RESAMPLES
    ) -> Calibration:
        """Score the items of every data set, hold them against gold, and store what came out: from now on it counts.

        Raises:
            LearningError: a data set has too few items with gold and a score.
        """
        made = calibrate(self.named, self.judged(sets, progress), resamples)
        return replace(made, id=self._store.add(made))

    def judged(self, sets: Mapping[str, Sequence[Item]], progress: Progress = silent) -> dict[str, list[Judged]]:
        """The items of every data set with their verdicts."""
        every = self.score([item for items in sets.values() for item in items], progress)
        verdicts = {each.item.key: each.verdict for each in every}
        return {name: [Judged(item, verdicts[item.key]) for item in items] for name, items in sets.items()}

    def source(self) -> LabelSource:
        """Whether this judge may label."""
        return label_source(self.database, self.named.version)


@contextmanager
def open_judging(settings: Settings, database: Database, tier_name: str | None = None) -> Iterator[Judging]:
    """The judge of a tier of the active ladder, by default the largest; its model starts with the first question.

    Raises:
        UnknownTierError: the ladder has no such tier.
        ModelFileError: its file is missing or is not the one that was pinned.
    """
    ladder = active_ladder(settings)
    tier = _chosen(ladder, tier_name)
    sha256 = verify(tier, settings, path=ensure(tier, settings))
    with ModelPool(settings, Ladder(ladder.name, (tier,), f"judging with {tier.name}")) as pool:
        yield Judging(database, pool.model(0), tier, sha256, settings.deadline_s)


def _chosen(ladder: Ladder, name: str | None) -> Tier:
    for tier in reversed(ladder.tiers):
        if name is None or name.lower() in (tier.name, tier.name.partition("-")[2]):
            return tier
    raise UnknownTierError(f"tier {name!r}: not in the ladder {ladder.name}; want one of {', '.join(ladder.names)}")
