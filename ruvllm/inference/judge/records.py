"""What a judge is given and what it says: frozen records. Knows nothing of models, prompts or the database."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field

from ruvllm.errors import InputError
from ruvllm.text import clean_text

SCALE = (1, 2, 3, 4, 5)
LEAST_MASS = 0.01  # of all next tokens on the five: below it the model was about to say something else


@dataclass(frozen=True)
class Item:
    """One answer to be judged. `gold`: how right it is, in [0, 1]; `group`: whose items are not independent."""

    question: str
    answer: str
    passages: tuple[str, ...] = ()
    gold: float | None = None
    group: str = ""
    key: str = field(init=False)  # of what the judge sees

    def __post_init__(self) -> None:
        """Raises InputError: a text is empty or unclean, or gold is no share."""
        if self.gold is not None and not 0.0 <= self.gold <= 1.0:
            raise InputError(f"gold: got {self.gold}, want a quality from 0 to 1")
        object.__setattr__(self, "question", clean_text(self.question, "question"))
        object.__setattr__(self, "answer", clean_text(self.answer, "answer"))
        object.__setattr__(self, "passages", tuple(clean_text(text, "context") for text in self.passages))
        seen = json.dumps([self.question, self.answer, self.passages], ensure_ascii=False)
        object.__setattr__(self, "key", hashlib.sha256(seen.encode()).hexdigest())
        object.__setattr__(self, "group", self.group or self.question)


@dataclass(frozen=True)
class Verdict:
    """The probabilities of "1" to "5" as the next token among all tokens; None where the item could not be asked."""

    probabilities: tuple[float, ...] | None
    reason: str = ""  # why there is no score

    @property
    def mass(self) -> float:
        """How likely a score of the scale is at all."""
        return math.fsum(self.probabilities) if self.probabilities else 0.0

    @property
    def score(self) -> float | None:
        """The expected score, from 1 to 5, as under the grammar [1-5]: the five renormalised. None: unparsable."""
        if self.probabilities is None or not self.mass >= LEAST_MASS:  # NaN, too
            return None
        weighted = math.fsum(level * p for level, p in zip(SCALE, self.probabilities, strict=True))
        return min(max(weighted / self.mass, float(SCALE[0])), float(SCALE[-1]))


@dataclass(frozen=True)
class Judged:
    """An item with its verdict."""

    item: Item
    verdict: Verdict


def to_quality(score: float) -> float:
    """1 to 5 -> 0 to 1, as write-back counts it; uncalibrated."""
    return (score - SCALE[0]) / (SCALE[-1] - SCALE[0])
