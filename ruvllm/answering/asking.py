"""What is asked and what it became: frozen records, and the checks of a question.

Knows nothing of how one is answered.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from ruvllm.answering.privacy import INTERNAL, level
from ruvllm.attention.stage import Placed
from ruvllm.errors import InputError
from ruvllm.inference.types import ROUTED_BINS, Generation
from ruvllm.memory.records import Hit
from ruvllm.router.decision import Decision
from ruvllm.router.layout import DEVICE_CLASSES
from ruvllm.text import clean_text


@dataclass(frozen=True)
class Ask:
    """One question. `gold`, where known, scores the answer; `history` is (question, answer) of earlier turns."""

    question: str
    history: tuple[tuple[str, str], ...] = ()
    session_id: str | None = None
    turn: int = 1
    request_id: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    forced_tier: str | None = None
    forced_bin: int | None = None
    latency_budget_s: float | None = None
    gold: tuple[str, ...] | None = None
    cycle_id: str | None = None
    domain: str = ""
    writer: str = ""
    instructions: str = ""  # the caller's own (OpenAI's system or developer messages)
    lines: bool = False  # the answer may have several lines
    kept_history: bool = False  # the earlier turns are those that were kept of the session
    stop: tuple[str, ...] = ()
    seed: int = 0
    device_class: str = "server"
    privacy: str = INTERNAL  # ruvllm/answering/privacy.py says what each level allows
    battery: float | None = None  # charge in [0, 1]; None: this machine's
    memory_gb: float | None = None  # GiB that the model may take; None: no such limit

    @property
    def unit(self) -> str:
        """What stays on one side of a trial: the session, else the request."""
        return self.session_id or self.request_id


@dataclass(frozen=True)
class Answer:
    """What a request became. `stage_ms` holds embed, search, features, route, assemble, generate and store."""

    request_id: str
    text: str
    tier: str
    context_bin: int
    decision: Decision
    generation: Generation
    hits: tuple[Hit, ...]
    used: tuple[int, ...]  # ids of the nodes in the prompt, in its order
    stage_ms: dict[str, float]
    total_ms: float
    cost: float
    degraded: tuple[str, ...] = ()
    quality: float | None = None
    ttft_ms: float | None = None  # until the first piece of a stream; None: answered in one piece
    attended: tuple[Placed, ...] = ()  # the nodes in attention's order, each with its place and score before it
    cited: tuple[int, ...] = ()  # those of `used` that the text names by their number, "[2]"
    writeback: str = "stored"  # stored | spooled | dropped | off (the privacy level forbids it)


def cleaned(ask: Ask) -> Ask:
    """`ask` with clean texts and a request id.

    Raises:
        InputError: a text, the device class, the privacy level or a number is unacceptable.
    """
    history = tuple((clean_text(q, "history"), clean_text(a, "history")) for q, a in ask.history)
    _check_constraints(ask)
    return replace(
        ask,
        question=clean_text(ask.question, "question"),
        history=history,
        instructions=clean_text(ask.instructions, "instructions") if ask.instructions else "",
        request_id=ask.request_id or str(uuid.uuid4()),
    )


def _check_constraints(ask: Ask) -> None:
    level(ask.privacy)
    if ask.device_class not in DEVICE_CLASSES:
        raise InputError(f"device class: got {ask.device_class!r}, want one of {', '.join(DEVICE_CLASSES)}")
    if ask.battery is not None and not 0 <= ask.battery <= 1:
        raise InputError(f"battery: got {ask.battery}, want a charge from 0 to 1")
    if ask.memory_gb is not None and not ask.memory_gb > 0:
        raise InputError(f"available memory: got {ask.memory_gb} GiB, want more than 0")


def checked_bin(context_bin: int | None) -> int | None:
    """
    Raises:
        InputError: the router has no such bin.
    """
    if context_bin is not None and context_bin not in ROUTED_BINS:
        raise InputError(f"context bin {context_bin}: want one of {', '.join(map(str, ROUTED_BINS))}")
    return context_bin
