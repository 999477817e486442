"""What every reply looks like, for the OpenAPI document and for those who check against it. No endpoint makes its
replies of these: dictionaries are faster, and a test holds the two together, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ruvllm.serving.schemas import Kind, Trust


class Shown(BaseModel):
    """A field that is not named here is not sent."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Shown):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Shown):
    """Every error has this shape."""

    error: ErrorDetail


# --- answers ----------------------------------------------------------------------------------------------------------


class CachedTokens(Shown):
    cached_tokens: int


class Usage(Shown):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class HitReply(Shown):
    """What memory found, without its text; GET /v1/memory/{id} has that."""

    node: int
    kind: Kind
    source: str
    similarity: float


class Versions(Shown):
    """What made the answer. `features` is the layout's hash."""

    ruvllm: str
    router: str
    features: str
    prompt: str
    encoder: str


class DecisionReply(Shown):
    """A routing decision. Probabilities are by the tier's place on the ladder, and by the context bin's."""

    model: str
    context_bin: int
    temperature: float
    top_p: float
    confidence: float | None
    propensity: float
    decided_by: str
    router_version: str
    model_probs: list[float]
    context_probs: list[float]
    request_id: str
    reason: str
    hits: list[HitReply]
    versions: Versions


class AttendedReply(Shown):
    """A node's place in the plain search (0: not found there), its score there and after attention, its hops away."""

    node: int
    before: int
    score_before: float
    score: float
    hop: int


class AnswerDecision(DecisionReply):
    """The `ruvllm` object of an answer: the decision, and what became of it. `used` are the nodes in the prompt, in its
    order; `cited` those of them that the text names by their number; `attended` is empty where attention is off."""

    used: list[int]
    cited: list[int]
    attended: list[AttendedReply]
    stage_ms: dict[str, float]
    total_ms: float
    cost: float
    degraded: list[str]
    writeback: Literal["stored", "spooled", "dropped", "off"]


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


# Absent, never null, where the request did not ask for it.
WhereAsked = Annotated[AnswerDecision, Field(json_schema_extra=_without_default)]


class RouteReply(DecisionReply):
    """`excluded` says why the request itself rules a tier out."""

    probabilities: dict[str, float]
    excluded: dict[str, str]


class AssistantMessage(Shown):
    role: Literal["assistant"]
    content: str


class ChatChoice(Shown):
    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class TextChoice(Shown):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: None


class WholeReply(Shown):
    id: str
    created: int
    model: str
    usage: Usage


class ChatReply(WholeReply):
    """`model` is the tier that answered; `ruvllm` is there where the request asked for it."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    ruvllm: WhereAsked = None  # type: ignore[assignment]


class TextReply(WholeReply):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    ruvllm: WhereAsked = None  # type: ignore[assignment]


# --- what generates nothing -------------------------------------------------------------------------------------------


class EmbeddingRow(Shown):
    """A list of numbers, or little-endian float32 in base64, as the request wanted."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class WordsUsed(Shown):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(Shown):
    object: Literal["list"]
    data: list[EmbeddingRow]
    model: str
    usage: WordsUsed


class FeedbackReply(Shown):
    request_id: str
    stored: Literal[True]


class ModelReply(Shown):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(Shown):
    object: Literal["list"]
    data: list[ModelReply]


# --- memory -----------------------------------------------------------------------------------------------------------


class NodeReply(Shown):
    id: int
    uuid: str
    object: Literal["memory.node"]
    kind: Kind
    domain: str
    trust: Trust
    text: str
    source: str
    writer: str
    tags: list[str]
    confidence: float
    version: int


class FoundNode(NodeReply):
    similarity: float


class FoundReply(Shown):
    object: Literal["list"]
    data: list[FoundNode]


class AddedReply(Shown):
    ids: list[int]
    written: int
    skipped: int


class DeletedReply(Shown):
    id: int
    object: Literal["memory.node"]
    deleted: Literal[True]


class ReachedNode(NodeReply):
    hops: int
    score: float


class EdgeReply(Shown):
    src: int
    dst: int
    relation: str
    weight: float


class NeighboursReply(Shown):
    object: Literal["list"]
    data: list[ReachedNode]
    edges: list[EdgeReply]


# --- the gateway itself -----------------------------------------------------------------------------------------------


class HealthReply(Shown):
    status: Literal["ok"]


class ReadyReply(Shown):
    """`degraded` is what is missing while answers still come, `reasons` why none can."""

    ready: bool
    router_version: str
    cold_start: bool
    degraded: list[str]
    reasons: list[str]


class RouterState(Shown):
    version: str
    sha256: str
    cold_start: bool
    stale_seconds: float


class QueueState(Shown):
    """`places` may wait beside the `slots` that run; `token_places` prompt tokens among those that wait."""

    running: int
    slots: int
    waiting: int
    places: int
    waiting_tokens: int
    token_places: int
    draining: bool


class ModelState(Shown):
    name: str
    state: str
    detail: str
    busy: int
    resident_mb: int
    restarts: int
    quarantined: int


class OutboxReply(Shown):
    waiting: int
    oldest_seconds: float
    failed: int


class MemoryState(Shown):
    nodes: int | None
    replica_ready: bool


class Night(Shown):
    """Regret of the night's candidate against the oracle on `n` held-out questions, with its interval."""

    night: int
    regret: float
    low: float | None
    high: float | None
    n: int | None
    promoted: bool


class StateReply(Shown):
    """`nights` is null while Postgres is away; `answered` counts since the start, by tier."""

    object: Literal["state"]
    version: str
    ready: bool
    reasons: list[str]
    degraded: list[str]
    tiers: list[str]
    context_bins: list[int]
    encoder: str
    router: RouterState
    queue: QueueState
    models: list[ModelState]
    answered: dict[str, int]
    outbox: OutboxReply
    memory: MemoryState
    nights: list[Night] | None
