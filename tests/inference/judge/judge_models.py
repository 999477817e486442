"""Models that judge by rule, and answers to judge. They implement `choose` alone: a judge calls nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ruvllm.errors import InputError, TooLargeError, WorkerDiedError
from ruvllm.inference.judge.records import SCALE, Item
from ruvllm.inference.types import Choice, Generation, NestedGeneration, Prompt, Sampling, Stream

SHA = "ab" * 32
Belief = Callable[[str, str], float]  # question, answer -> the score around which the probabilities lie


def noise(text: str) -> float:
    """In [-1, 1), the same for the same text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**31 - 1


@dataclass
class RuleModel:
    """Its tokens are `tokens`; its probabilities fall off around `belief`, `mass` of them on the scores."""

    belief: Belief
    tokens: frozenset[str] = frozenset(map(str, SCALE))
    mass: float = 0.9
    words: int = 10_000  # of context
    lives: int = 10**9  # prompts until it dies
    asked: list[Prompt] = field(default_factory=list)

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], deadline_s: float) -> list[Choice]:
        if set(choices) - self.tokens:
            raise InputError(f"choices: {choices} are not one token each")
        if any(len(said(prompt).split()) > self.words for prompt in prompts):
            raise TooLargeError("prompt: too long")
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> Choice:
        if self.lives <= 0:
            raise WorkerDiedError("rule model: told to die")
        self.lives -= 1
        self.asked.append(prompt)
        query, response = [segment.text for segment in prompt.question if not segment.trusted]
        weights = [math.exp(-2.0 * (level - self.belief(query, response)) ** 2) for level in SCALE]
        return Choice(tuple(self.mass * w / sum(weights) for w in weights), 10, 5, 0.01)

    def count_tokens(self, texts: list[str]) -> list[int]:
        raise NotImplementedError

    def generate(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Generation:
        raise NotImplementedError

    def stream(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Stream:
        raise NotImplementedError

    def generate_nested(
        self, prompts: dict[int, Prompt], sampling: Sampling, deadline_s: float
    ) -> list[NestedGeneration]:
        raise NotImplementedError


def said(prompt: Prompt) -> str:
    return "".join(segment.text for segment in (*prompt.static, *prompt.history, *prompt.context, *prompt.question))


WORTH = {"right": 1.0, "partly right": 0.4, "wrong": 0.0}


def items(questions: int, name: str = "q") -> list[Item]:
    """Three answers to each question: right, partly right, wrong; their lengths say nothing."""
    return [
        Item(f"{name} {number}?", f"{answer} {'so ' * (number % 5)}", (f"passage {number}",), gold)
        for number in range(questions)
        for answer, gold in WORTH.items()
    ]


def knows(question: str, answer: str) -> float:
    """Right more often than not, never sure, on a scale that is shifted upwards."""
    worth = next(gold for text, gold in WORTH.items() if answer.startswith(text))
    return 2.5 + 2 * worth + noise(question + answer)


def guesses(question: str, answer: str) -> float:
    return 3 + 2 * noise(question + answer)


def inverts(question: str, answer: str) -> float:
    return 6 - knows(question, answer)


def never_moves(question: str, answer: str) -> float:
    return 4.0


def loves_length(question: str, answer: str) -> float:
    return min(5.0, 1.0 + len(answer.split()) / 2)
