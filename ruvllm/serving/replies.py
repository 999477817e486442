"""What HTTP gives out: answers as OpenAI's clients expect them, the decision in headers. Knows nothing of requests."""

from __future__ import annotations

import time
from typing import Any

from ruvllm.answer import Answer
from ruvllm.memory.records import Hit
from ruvllm.router.decision import Decision
from ruvllm.serving.schemas import AUTO
from ruvllm.serving.service import State

ID_PREFIX = "chatcmpl-"


def completion(answer: Answer, with_decision: bool) -> dict[str, Any]:
    """A chat.completion object; `model` is the tier that answered, `ruvllm` is there where it was asked for."""
    generation = answer.generation
    body: dict[str, Any] = {
        "id": f"{ID_PREFIX}{answer.request_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.tier,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "finish_reason": generation.finish_reason,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": generation.completion_tokens,
            "total_tokens": generation.prompt_tokens + generation.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
        },
    }
    if with_decision:
        body["ruvllm"] = {
            "request_id": answer.request_id,
            **decision_object(answer.decision, answer.tier),
            "context_bin": answer.context_bin,
            "used": list(answer.used),
            "hits": [hit_object(hit) for hit in answer.hits],
            "stage_ms": {name: round(ms, 3) for name, ms in answer.stage_ms.items()},
            "total_ms": round(answer.total_ms, 3),
            "cost": answer.cost,
            "degraded": list(answer.degraded),
        }
    return body


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


def hit_object(hit: Hit) -> dict[str, Any]:
    """A search result without its text, which belongs to memory's readers."""
    return {
        "node": hit.node.id,
        "kind": hit.node.kind,
        "source": hit.node.source,
        "similarity": round(hit.similarity, 6),
    }


def decision_headers(decision: Decision, tier: str, hits: tuple[Hit, ...]) -> dict[str, str]:
    return {
        "x-ruvllm-model": tier,
        "x-ruvllm-decision": decision.decided_by,
        "x-ruvllm-confidence": "" if decision.confidence is None else f"{decision.confidence:.4f}",
        "x-ruvllm-router-version": decision.router_version,
        "x-ruvllm-memory-hits": str(len(hits)),
    }


def time_headers(answer: Answer, queue_s: float, overhead_s: float) -> dict[str, str]:
    return {
        "x-ruvllm-route-ms": _ms(answer.stage_ms.get("route", 0.0)),
        "x-ruvllm-retrieve-ms": _ms(answer.stage_ms.get("search", 0.0)),
        "x-ruvllm-queue-ms": _ms(queue_s * 1000),
        "x-ruvllm-overhead-ms": _ms(overhead_s * 1000),
        "x-ruvllm-degraded": ",".join(answer.degraded),
    }


def models(tiers: tuple[str, ...]) -> dict[str, Any]:
    """The list that GET /v1/models gives: `auto`, then every tier."""
    entries = [{"id": name, "object": "model", "created": 0, "owned_by": "ruvllm"} for name in (AUTO, *tiers)]
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
