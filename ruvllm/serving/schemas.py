"""What HTTP takes in, validated before any work; knows nothing of models or of how a request is answered.

Unknown fields, numbers out of range or not finite are refused: a field that is ignored in silence is a promise broken.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ruvllm.answer import Ask
from ruvllm.errors import InputError, UnknownTierError

AUTO = "auto"
MAX_MESSAGES = 256
MAX_TOKENS = 1024

T = TypeVar("T")
Name = Annotated[str, Field(min_length=1, max_length=200)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: Annotated[str, Field(min_length=1)]


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(min_length=1)] | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Name | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class Options(_Strict):
    """Our part of a request. `tier` forces a tier as `model` does, `context_bin` forces a bin."""

    tier: Name | None = None
    context_bin: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    latency_budget_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    session_id: Name | None = None
    return_decision: bool = False


class ChatRequest(_Strict):
    """POST /v1/chat/completions and /v1/route; `model` is `auto` or a tier's name."""

    model: Name = AUTO
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Literal[1] = 1
    stream: bool = False
    user: Name | None = None
    ruvllm: Options = Options()

    def to_ask(self, request_id: str, tiers: tuple[str, ...]) -> Ask:
        """The question, its history and what was forced.

        Raises:
            InputError: streaming is asked for, the turns do not alternate, or two fields contradict each other.
            UnknownTierError: `model` or `ruvllm.tier` is no tier of `tiers`.
        """
        if self.stream:
            raise InputError("stream: got true, want false; answers come in one piece for now")
        turns = _turns(self.messages)
        return Ask(
            question=turns[-1],
            history=tuple(zip(turns[:-1:2], turns[1::2], strict=True)),
            session_id=self.ruvllm.session_id,
            turn=len(turns) // 2 + 1,
            request_id=request_id,
            max_tokens=_one_of_two("max_tokens", self.max_tokens, "max_completion_tokens", self.max_completion_tokens),
            temperature=self.temperature,
            top_p=self.top_p,
            forced_tier=self._forced_tier(tiers),
            forced_bin=self.ruvllm.context_bin,
            latency_budget_s=self.ruvllm.latency_budget_s,
            writer=self.user or "",
        )

    def _forced_tier(self, tiers: tuple[str, ...]) -> str | None:
        model = None if self.model == AUTO else self.model
        tier = _one_of_two("model", model, "ruvllm.tier", self.ruvllm.tier)
        if tier is not None and tier not in tiers:
            raise UnknownTierError(f"model {tier!r}: not served here, want one of {', '.join((AUTO, *tiers))}")
        return tier


class FeedbackRequest(_Strict):
    """POST /v1/feedback; `request_id` is the x-request-id of an answer, or its id."""

    request_id: Name
    rating: Annotated[int, Field(ge=1, le=5)] | None = None
    correction: Annotated[str, Field(min_length=1)] | None = None
    task_success: bool | None = None
    user: Name | None = None


def _turns(messages: list[Message]) -> list[str]:
    """The texts user, assistant, user …, ending with a user's."""
    for place, message in enumerate(messages):
        if message.role in ("system", "developer"):
            raise InputError(
                f"messages[{place}].role: got {message.role!r}, which is not taken yet; put it into the user's text"
            )
        wanted = "user" if place % 2 == 0 else "assistant"
        if message.role != wanted:
            raise InputError(
                f"messages[{place}].role: got {message.role!r}, want {wanted!r}; turns alternate, the user's first"
            )
    if len(messages) % 2 == 0:
        raise InputError("messages: the last is the assistant's, want the user's question")
    return [message.text for message in messages]


def _one_of_two(name: str, value: T | None, other_name: str, other: T | None) -> T | None:
    if value is not None and other is not None and value != other:
        raise InputError(f"{name} and {other_name}: got {value!r} and {other!r}, want one of the two")
    return value if value is not None else other
