"""Scores many items, in batches, and goes on where it was stopped. Knows nothing of gold.

A judge's score is for good once it is stored: the same item is never asked twice of the same judge, and where nothing
is left to ask the judge's model is not started.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ruvllm.inference.judge.judge import Judge
from ruvllm.inference.judge.records import Item, Judged
from ruvllm.inference.judge.store import JudgeStore
from ruvllm.progress import Progress, silent

BATCH = 8  # items: what a stop costs at most


def score_all(store: JudgeStore, judge: Judge, items: Sequence[Item], progress: Progress = silent) -> list[Judged]:
    """A verdict per item, in order; what the judge has said before is not asked again.

    Raises:
        InferenceError: the model failed; what was scored until then is stored.
        DatabaseError: a batch could not be stored; what was stored before stays.
    """
    said = store.verdicts(judge.version, items)
    left = _left(items, set(said))
    done = len(items) - len(left)
    progress(done, len(items))
    for batch in _batches(left):
        new = dict(zip([item.key for item in batch], judge.score(batch), strict=True))
        store.keep(judge.version, new)
        said |= new
        done += len(batch)
        progress(done, len(items))
    return [Judged(item, said[item.key]) for item in items]


def _left(items: Sequence[Item], known: set[str]) -> list[Item]:
    """What is left to ask, each once; those over the same passages stand together, so that they share a prefix."""
    fresh = {item.key: item for item in items if item.key not in known}
    return sorted(fresh.values(), key=lambda item: (item.passages, item.question))


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
