"""The curve behind the thresholds of an encoder: what would merge from which nearness on, right and wrong.

Measured on made pairs (pairs.py), so it needs no data of anyone's and no database. What it recommends is written into
thresholds.py by whoever reads the curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.memory.likeness.alike import same_fact
from ruvllm.memory.likeness.minhash import jaccard
from ruvllm.memory.likeness.pairs import Pair, pairs, passages
from ruvllm.memory.likeness.wording import same_names
from ruvllm.memory.records import Vector
from ruvllm.progress import Progress, silent

_COSINES = tuple(round(0.70 + 0.01 * step, 2) for step in range(31))
_JACCARDS = tuple(round(0.30 + 0.05 * step, 2) for step in range(15))
_MARGIN = 0.02  # above the lowest threshold without a wrong merge: real texts are not made of templates
_BATCH = 64  # texts embedded between two reports of progress


@dataclass(frozen=True)
class Point:
    """What merges from `threshold` on: by nearness alone, and with names, numbers and wording compared as well."""

    threshold: float
    equivalent: int
    conflicting: int
    equivalent_checked: int
    conflicting_checked: int


@dataclass(frozen=True)
class Curve:
    """Points by rising threshold over `equivalents` and `conflicts` pairs."""

    name: str  # cosine | jaccard
    equivalents: int
    conflicts: int
    points: tuple[Point, ...]

    @property
    def recommended(self) -> float:
        """The lowest threshold from which on no conflicting pair merges, and a margin; 1.01, never, without one."""
        wrong = [point.threshold for point in self.points if point.conflicting_checked]
        safe = [point.threshold for point in self.points if point.threshold > max(wrong, default=0.0)]
        return min(1.0, round(safe[0] + _MARGIN, 2)) if safe else 1.01


@dataclass(frozen=True)
class Calibration:
    """Of one encoder; the Jaccard curve is the same for all, for it reads words."""

    encoder: str
    cosine: Curve
    jaccard: Curve
    in_use: float  # the paraphrase threshold of thresholds.py

    def as_table(self) -> str:
        """Markdown: a table a curve, what is recommended under it."""
        return "\n\n".join((f"Encoder {self.encoder}", _table(self.cosine), _table(self.jaccard), self._advice()))

    def _advice(self) -> str:
        return (
            f"Recommended for {self.encoder}: paraphrase cosine {self.cosine.recommended:.2f},"
            f" in use {self.in_use:.2f}; RUVLLM_PARAPHRASE_COSINE sets another. Jaccard"
            " decides together with names and numbers only: by itself it puts every conflicting passage above the"
            " reworded ones."
        )


def calibrate(embedder: EmbeddingAdapter, progress: Progress = silent) -> Calibration:
    """Embed the made pairs and draw both curves; about 500 short texts.

    Raises:
        InferenceError: the encoder gave a broken vector.
    """
    from ruvllm.memory.likeness.thresholds import BY_ENCODER, STRICT

    made = pairs()
    near = _cosines(embedder, made, progress)
    in_use = BY_ENCODER.get(embedder.id, STRICT).paraphrase
    return Calibration(embedder.id, _cosine_curve(made, near), _jaccard_curve(), in_use)


def _cosines(embedder: EmbeddingAdapter, made: Sequence[Pair], progress: Progress) -> list[float]:
    texts = sorted({_text(each) for pair in made for each in (pair.first, pair.second)})
    vectors: dict[str, Vector] = {}
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        vectors |= dict(zip(batch, embedder.embed(batch), strict=True))
        progress(len(vectors), len(texts))
    return [float(vectors[_text(pair.first)] @ vectors[_text(pair.second)]) for pair in made]


def _text(asked: tuple[str, str]) -> str:
    return f"Q: {asked[0]}\nA: {asked[1]}"  # as a Fact is stored


def _cosine_curve(made: Sequence[Pair], near: Sequence[float]) -> Curve:
    def merges(i: int, threshold: float) -> bool:
        return same_fact(made[i].first, made[i].second, near[i], threshold)

    return _curve("cosine", [pair.same for pair in made], near, _COSINES, merges)


def _jaccard_curve() -> Curve:
    made = passages()
    near = [jaccard(first, second) for first, second, _ in made]
    named = [same_names(first, second) for first, second, _ in made]
    return _curve("jaccard", [same for _, _, same in made], near, _JACCARDS, lambda i, t: near[i] >= t and named[i])


def _curve(
    name: str,
    same: Sequence[bool],
    near: Sequence[float],
    thresholds: Sequence[float],
    merges: Callable[[int, float], bool],
) -> Curve:
    """`merges(i, threshold)` says whether pair i would be merged by all that is compared."""

    def count(wanted: bool, test: Callable[[int], bool]) -> int:
        return sum(truth is wanted and test(i) for i, truth in enumerate(same))

    points = [
        Point(
            threshold,
            count(True, lambda i, t=threshold: near[i] >= t),  # type: ignore[misc]  # a default binds the loop's value
            count(False, lambda i, t=threshold: near[i] >= t),  # type: ignore[misc]
            count(True, lambda i, t=threshold: merges(i, t)),  # type: ignore[misc]
            count(False, lambda i, t=threshold: merges(i, t)),  # type: ignore[misc]
        )
        for threshold in thresholds
    ]
    return Curve(name, sum(same), len(same) - sum(same), tuple(points))


def _table(curve: Curve) -> str:
    head = (
        f"| {curve.name} ≥ | same, of {curve.equivalents} | conflicting, of {curve.conflicts}"
        " | same, wording checked | conflicting, wording checked |\n|---|---|---|---|---|"
    )
    rows = [
        f"| {p.threshold:.2f} | {p.equivalent} | {p.conflicting} | {p.equivalent_checked} | {p.conflicting_checked} |"
        for p in curve.points
    ]
    return "\n".join((head, *rows))
