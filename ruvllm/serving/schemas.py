"""What HTTP takes in, validated before any work; knows nothing of models or of how a request is answered.

Unknown fields, numbers out of range or not finite are refused: a field that is ignored in silence is a promise broken.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ruvllm.answering.answer import Ask
from ruvllm.errors import InputError, UnknownTierError

AUTO = "auto"
MAX_MESSAGES = 256
MAX_TOKENS = 1024
MAX_INPUTS = 256  # texts of one request for embeddings, nodes of one for memory
MAX_ID = 2**63 - 1

T = TypeVar("T")
_STORABLE = r"^[^\x00]*$"  # Postgres stores no NUL
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=_STORABLE)]
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]
Nothing = Annotated[float, Field(ge=0, le=0)]  # what clients send by default; another value is not carried out here


def _no_number(value: object) -> object:
    """A literal False lets 0 in, which equals it."""
    if not isinstance(value, bool):
        raise ValueError("want false")
    return value


class Strict(BaseModel):
    """Of the type that the document says: "1" is no number, and neither is true."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, strict=True)


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Name | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class Options(Strict):
    """Our part of a request, in the field `ruvllm`: what it forces, and the limits that its answer is to keep."""

    tier: Name | None = Field(default=None, description="forces a tier, as `model` does")
    context_bin: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="forces a context bin"
    )
    latency_budget_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    device_class: Literal["edge", "mobile", "server", "cluster"] = "server"
    battery: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="charge of the asker's device"
    )
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="GiB that the model may take"
    )
    privacy: Literal["public", "internal", "confidential", "restricted"] = Field(
        default="internal", description="what may be kept, sent on and logged"
    )
    session_id: Name | None = Field(default=None, description="earlier turns are remembered under it, for half an hour")
    lines: bool | None = Field(
        default=None, description="several lines may be answered; by default where there are instructions"
    )
    return_decision: bool = Field(default=False, description="the reply has a `ruvllm` object")


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Generating(Strict):
    """What chat and text completions have in common; `model` is `auto` or a tier's name."""

    model: Name = AUTO
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_ID)] | None = None
    n: Literal[1] = 1
    frequency_penalty: Nothing | None = None
    presence_penalty: Nothing | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Name | None = None
    ruvllm: Options = Options()

    @property
    def usage_in_stream(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _forced_tier(self, tiers: tuple[str, ...]) -> str | None:
        model = None if self.model == AUTO else self.model
        tier = _one_of_two("model", model, "ruvllm.tier", self.ruvllm.tier)
        if tier is not None and tier not in tiers:
            raise UnknownTierError(f"model {tier!r}: not served here, want one of {', '.join((AUTO, *tiers))}")
        return tier

    def _ask(self, turns: list[str], instructions: str, max_tokens: int | None, asked: Asked) -> Ask:
        options = self.ruvllm
        return Ask(
            question=turns[-1],
            history=tuple(zip(turns[:-1:2], turns[1::2], strict=True)),
            session_id=options.session_id,
            turn=len(turns) // 2 + 1,
            request_id=asked.request_id,
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            forced_tier=self._forced_tier(asked.tiers),
            forced_bin=options.context_bin,
            latency_budget_s=options.latency_budget_s,
            writer=asked.writer_of(self.user),
            instructions=instructions,
            lines=bool(instructions) if options.lines is None else options.lines,
            kept_history=options.session_id is not None and len(turns) == 1,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=self.seed or 0,
            device_class=options.device_class,
            privacy=options.privacy,
            battery=options.battery,
            memory_gb=options.memory_gb,
        )


class Asked:
    """What a request is asked under: its id, the ladder's tiers, and whose key it came with ('' without one)."""

    def __init__(self, request_id: str, tiers: tuple[str, ...], key_id: str = "") -> None:
        self.request_id, self.tiers, self.key_id = request_id, tiers, key_id

    def writer_of(self, user: str | None) -> str:
        """Who is named as the writer: the client's user, else the key."""
        return user or (f"key:{self.key_id}" if self.key_id else "")


class ChatRequest(Generating):
    """POST /v1/chat/completions and /v1/route."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None

    def to_ask(self, asked: Asked) -> Ask:
        """The question, its history and what was forced.

        Raises:
            InputError: the turns do not alternate, or two fields contradict each other.
            UnknownTierError: `model` or `ruvllm.tier` is no tier.
        """
        told = [message.text for message in self.messages if message.role in _INSTRUCTING]
        limit = _one_of_two("max_tokens", self.max_tokens, "max_completion_tokens", self.max_completion_tokens)
        return self._ask(_turns(self.messages), "\n".join(told), limit, asked)


class CompletionRequest(Generating):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    max_tokens: Tokens | None = None
    echo: Annotated[Literal[False], BeforeValidator(_no_number)] = False
    best_of: Literal[1] = 1

    def to_ask(self, asked: Asked) -> Ask:
        """As ChatRequest.to_ask; the prompt is the question."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return self._ask([prompt], "", self.max_tokens, asked)


class EmbeddingRequest(Strict):
    """POST /v1/embeddings; `model` is `auto` or the encoder's id."""

    model: Name = AUTO
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = None
    user: Name | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else list(self.input)


class FeedbackRequest(Strict):
    """POST /v1/feedback; `request_id` is the x-request-id of an answer, or its id."""

    request_id: Name
    rating: Annotated[int, Field(ge=1, le=5)] | None = None
    correction: Text | None = None
    task_success: bool | None = None
    user: Name | None = None


Kind = Literal["Query", "Document", "AgentStep", "Fact", "Concept"]
Trust = Literal["system", "corroborated", "untrusted"]
Tag = Annotated[str, Field(min_length=1, max_length=100, pattern=_STORABLE)]
Label = Annotated[str, Field(max_length=200, pattern=_STORABLE)]


class MemorySearch(Strict):
    """POST /v1/memory/search."""

    query: Text
    k: Annotated[int, Field(ge=1, le=64)] = 10
    mode: Literal["meaning", "words", "hybrid"] = "meaning"
    kinds: Annotated[list[Kind], Field(max_length=5)] = []
    domains: Annotated[list[Name], Field(max_length=64)] = []
    tags: Annotated[list[Tag], Field(max_length=64)] = []
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0
    user: Name | None = None


class MemoryNode(Strict):
    """A node to add; one that is not `untrusted` takes a key with the scope admin."""

    text: Text
    kind: Kind = "Document"
    source: Label = "api"
    domain: Label = ""
    trust: Trust = "untrusted"
    tags: Annotated[list[Tag], Field(max_length=64)] = []


class MemoryAdd(Strict):
    """POST /v1/memory."""

    nodes: Annotated[list[MemoryNode], Field(min_length=1, max_length=MAX_INPUTS)]
    user: Name | None = None


_INSTRUCTING = ("system", "developer")


def _turns(messages: list[Message]) -> list[str]:
    """The texts user, assistant, user …, ending with a user's; instructions may stand anywhere among them."""
    spoken = [(place, message) for place, message in enumerate(messages) if message.role not in _INSTRUCTING]
    for number, (place, message) in enumerate(spoken):
        wanted = "user" if number % 2 == 0 else "assistant"
        if message.role != wanted:
            raise InputError(
                f"messages[{place}].role: got {message.role!r}, want {wanted!r}; turns alternate, the user's first"
            )
    if len(spoken) % 2 == 0:
        raise InputError("messages: the last is not the user's question, want that last")
    return [message.text for _, message in spoken]


def _one_of_two(name: str, value: T | None, other_name: str, other: T | None) -> T | None:
    if value is not None and other is not None and value != other:
        raise InputError(f"{name} and {other_name}: got {value!r} and {other!r}, want one of the two")
    return value if value is not None else other
