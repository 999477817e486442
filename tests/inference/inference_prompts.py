"""Prompts of a few tokens, so that tests do not wait for prefill."""

from __future__ import annotations

from ruvllm.inference.types import Prompt, Segment


def short_prompt(question: str, context: tuple[str, ...] = (), static: str = "Answer briefly.\n") -> Prompt:
    return Prompt(
        static=(Segment(static, True),),
        history=(),
        context=tuple(Segment(text, False) for text in context),
        question=(Segment(question, False), Segment("\nAnswer:", True)),
    )
