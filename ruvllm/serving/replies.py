"""What HTTP gives out: answers as OpenAI's clients expect them, the decision in headers. Knows nothing of requests."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruvllm import __version__
from ruvllm.answering.answer import Answer
from ruvllm.answering.recall import CACHE
from ruvllm.inference.prompt import PROMPT_VERSION
from ruvllm.inference.types import Generation
from ruvllm.memory.records import Hit, Node
from ruvllm.router.decision import Decision
from ruvllm.router.layout import LAYOUT
from ruvllm.serving.schemas import AUTO
from ruvllm.serving.service import State

ID_PREFIX, TEXT_ID_PREFIX = "chatcmpl-", "cmpl-"


@dataclass(frozen=True)
class Shape:
    """How one endpoint says an answer, whole and in pieces."""

    prefix: str
    whole: str  # the `object` of a whole reply
    piece: str  # the `object` of a chunk
    chat: bool

    def choice(self, answer: Answer) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": answer.text}} if self.chat else {"text": answer.text}
        return {"index": 0, **said, "finish_reason": answer.generation.finish_reason, "logprobs": None}

    def part(self, text: str | None, finish_reason: str | None = None, first: bool = False) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text or ""}
        if self.chat:
            role = {"role": "assistant"} if first else {}
            said = {"delta": {**role, **({} if text is None else {"content": text})}}
        return {"index": 0, **said, "finish_reason": finish_reason, "logprobs": None}


CHAT = Shape(ID_PREFIX, "chat.completion", "chat.completion.chunk", chat=True)
TEXT = Shape(TEXT_ID_PREFIX, "text_completion", "text_completion", chat=False)


def completion(shape: Shape, answer: Answer, more: Mapping[str, Any]) -> dict[str, Any]:
    """A whole reply; `model` is the tier that answered."""
    return {
        "id": f"{shape.prefix}{answer.request_id}",
        "object": shape.whole,
        "created": int(time.time()),
        "model": answer.tier,
        "choices": [shape.choice(answer)],
        "usage": usage(answer.generation),
        **more,
    }


@dataclass(frozen=True)
class Chunks:
    """The chunks of one streamed reply. With `usage`, each has the field, and one more at the end says it."""

    shape: Shape
    request_id: str
    usage: bool
    created: int

    def piece(self, tier: str, text: str | None, first: bool = False) -> dict[str, Any]:
        return self._chunk(tier, [self.shape.part(text, first=first)])

    def last(self, answer: Answer, more: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._chunk(answer.tier, [self.shape.part(None, answer.generation.finish_reason)]), **more}

    def spent(self, answer: Answer) -> dict[str, Any]:
        return {**self._chunk(answer.tier, []), "usage": usage(answer.generation)}

    def _chunk(self, tier: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        content = {
            "id": f"{self.shape.prefix}{self.request_id}",
            "object": self.shape.piece,
            "created": self.created,
            "model": tier,
            "choices": choices,
        }
        return {**content, "usage": None} if self.usage else content


def usage(generation: Generation) -> dict[str, Any]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


def decision_of(answer: Answer, encoder: str) -> dict[str, Any]:
    """The `ruvllm` object of a reply."""
    return {
        "request_id": answer.request_id,
        **decision_object(answer.decision, answer.tier),
        "reason": reason(answer.decision),
        "context_bin": answer.context_bin,
        "used": list(answer.used),
        "cited": list(answer.cited),
        "hits": [hit_object(hit) for hit in answer.hits],
        "attended": [place.as_dict() for place in answer.attended],
        "stage_ms": {name: round(ms, 3) for name, ms in answer.stage_ms.items()},
        "total_ms": round(answer.total_ms, 3),
        "cost": answer.cost,
        "degraded": list(answer.degraded),
        "writeback": answer.writeback,
        "versions": versions(answer.decision, encoder),
    }


def versions(decision: Decision, encoder: str) -> dict[str, str]:
    """What made the answer, so that it can be told apart from another's."""
    return {
        "ruvllm": __version__,
        "router": decision.router_version,
        "features": LAYOUT.hash,
        "prompt": PROMPT_VERSION,
        "encoder": encoder,
    }


def decision_object(decision: Decision, tier: str) -> dict[str, Any]:
    return {
        "model": tier,
        "context_bin": decision.context_bin,
        "temperature": decision.temperature,
        "top_p": decision.top_p,
        "confidence": decision.confidence,
        "propensity": decision.propensity,
        "decided_by": decision.decided_by,
        "router_version": decision.router_version,
        "model_probs": list(decision.model_probs),
        "context_probs": list(decision.context_probs),
    }


def routing(decision: Decision, tiers: Sequence[str], excluded: Mapping[str, str]) -> dict[str, Any]:
    """Why: who decided, what the router thought of each tier, and what the request itself ruled out."""
    probabilities = dict(zip(tiers, decision.model_probs, strict=False))
    return {
        "reason": reason(decision),
        "probabilities": {name: round(share, 6) for name, share in probabilities.items()},
        "excluded": dict(excluded),
    }


def reason(decision: Decision) -> str:
    """Who decided, in words."""
    return _REASONS.get(decision.decided_by, decision.decided_by)


_REASONS = {
    "champion": "the promoted router's best choice",
    "cold-start": "no router was promoted yet: drawn uniformly from what is in time",
    "explore": "drawn at random, to learn of what is not chosen otherwise",
    "fallback": "the router was not confident: the next tier up with a wider context",
    "forced": "the request forced the tier, the context bin, or both",
    CACHE: "memory holds a well-rated answer to a question that is close enough",
    "cascade": "the small tier's own answer was not confident enough",
}


def hit_object(hit: Hit) -> dict[str, Any]:
    """A search result without its text, which belongs to memory's readers."""
    return {
        "node": hit.node.id,
        "kind": hit.node.kind,
        "source": hit.node.source,
        "similarity": round(hit.similarity, 6),
    }


def node_object(node: Node) -> dict[str, Any]:
    """A node with its text, for who may read memory."""
    return {
        "id": node.id,
        "uuid": node.uuid,
        "object": "memory.node",
        "kind": node.kind,
        "domain": node.domain,
        "trust": node.trust,
        "text": node.text,
        "source": node.source,
        "writer": node.writer,
        "tags": list(node.tags),
        "confidence": node.confidence,
        "version": node.version,
    }


def decision_headers(decision: Decision, tier: str, hits: Sequence[Hit]) -> dict[str, str]:
    return {
        "x-ruvllm-model": tier,
        "x-ruvllm-decision": decision.decided_by,
        "x-ruvllm-confidence": "" if decision.confidence is None else f"{decision.confidence:.4f}",
        "x-ruvllm-router-version": decision.router_version,
        "x-ruvllm-memory-hits": str(len(hits)),
    }


def answer_headers(answer: Answer, queue_s: float, overhead_s: float) -> dict[str, str]:
    """What is known only when all is said; a stream's own headers went before."""
    return {
        **decision_headers(answer.decision, answer.tier, answer.hits),
        "x-ruvllm-route-ms": _ms(answer.stage_ms.get("route", 0.0)),
        "x-ruvllm-retrieve-ms": _ms(answer.stage_ms.get("search", 0.0)),
        "x-ruvllm-queue-ms": _ms(queue_s * 1000),
        "x-ruvllm-overhead-ms": _ms(overhead_s * 1000),
        "x-ruvllm-degraded": ",".join(answer.degraded),
        "x-ruvllm-cache": _cache(answer),
        "x-ruvllm-writeback": answer.writeback,
    }


def _cache(answer: Answer) -> str:
    if answer.decision.decided_by == CACHE:
        return "answer"
    return "prefix" if answer.generation.cached_tokens else "miss"


def models(tiers: tuple[str, ...], encoder: str) -> dict[str, Any]:
    """The list that GET /v1/models gives: `auto`, every tier, and the encoder."""
    entries = [{"id": name, "object": "model", "created": 0, "owned_by": "ruvllm"} for name in (AUTO, *tiers, encoder)]
    return {"object": "list", "data": entries}


def readiness(state: State) -> dict[str, Any]:
    return {
        "ready": state.ready,
        "router_version": state.router_version,
        "cold_start": not state.router_version,
        "degraded": list(state.degraded),
        "reasons": list(state.blocked),
    }


def _ms(value: float) -> str:
    return f"{value:.3f}"
