"""A model that scores answers: the expectation over its probabilities of "1" to "5". Knows nothing of gold or Postgres.

Under the grammar [1-5] a model could say nothing but one of the five, each with its own probability over their sum. So
the expected score under the grammar is the five's renormalised expectation, and nothing has to be generated for it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from ruvllm.errors import InferenceError, InputError, TooLargeError
from ruvllm.inference.judge.prompt import SPELLINGS, Spelling, build_judgement, template_hash
from ruvllm.inference.judge.records import Item, Verdict
from ruvllm.inference.types import Model

TOO_LONG = "too long for the judge's context"
NO_SCORE = "no score was likely"
NO_NUMBER = "the model's probabilities are no numbers"


def judge_version(sha256: str, style: str) -> str:
    """Whose scores these are: another model file or another prompt is another judge. 16 hexadecimal digits."""
    return hashlib.sha256(f"{sha256}:{style}:{template_hash(style)}".encode()).hexdigest()[:16]


class Judge:
    """Scores with `model`, whose file's hash is `sha256` and whose prompts are of `style`."""

    def __init__(self, model: Model, style: str, sha256: str, deadline_s: float) -> None:
        """`deadline_s`: seconds per item."""
        self._model, self._style, self._deadline_s = model, style, deadline_s
        self._spellings: tuple[Spelling, ...] = SPELLINGS  # the one that the model has, once that is known
        self.version = judge_version(sha256, style)

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """A verdict per item, in order. What does not fit the context gets none, and says so; nothing is cut.

        Raises:
            InferenceError: the model cannot answer, or has no token for a score.
        """
        if not items:
            return []
        try:
            return self._chosen(items)
        except TooLargeError:
            return [self._one(item) for item in items]

    def _one(self, item: Item) -> Verdict:
        try:
            return self._chosen([item])[0]
        except TooLargeError:
            return Verdict(None, TOO_LONG)

    def _chosen(self, items: Sequence[Item]) -> list[Verdict]:
        """Texts are clean and the prompt is ours, so that a refusal, but for its length, is about the choices."""
        for spelling in self._spellings:
            prompts = [build_judgement(self._style, item, spelling) for item in items]
            try:
                choices = self._model.choose(prompts, spelling.choices, self._deadline_s * len(prompts))
            except TooLargeError:
                raise
            except InputError:
                continue
            self._spellings = (spelling,)
            return [_said(Verdict(choice.probabilities)) for choice in choices]
        raise InferenceError("judge: this model has neither '1' nor ' 1' as one token; take another tier as judge")


def _said(verdict: Verdict) -> Verdict:
    if not math.isfinite(verdict.mass):
        return Verdict(None, NO_NUMBER)
    return verdict if verdict.score is not None else Verdict(verdict.probabilities, NO_SCORE)
