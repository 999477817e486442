"""GET /v1/state: the running state as the console shows it. Knows nothing of how it is shown.

What one gateway knows of itself is read in process; the trend of regret is the caller's tenant's own, from Postgres,
and null while that is away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

from fastapi import APIRouter, Request
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow
from starlette.responses import Response

from ruvllm import __version__
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.inference.states import TierState
from ruvllm.inference.types import BINS
from ruvllm.serving.admission import Admission
from ruvllm.serving.callers import Callers
from ruvllm.serving.documents import LOOKS
from ruvllm.serving.errors import JsonResponse
from ruvllm.serving.metrics import Metrics
from ruvllm.serving.service import GatewayService

MOST_NIGHTS = 60

# A night that measured nothing (no champion, nothing to learn from) has no place on the trend.
_NIGHTS: LiteralString = """
    SELECT c.night, (e.result ->> 'regret_after')::float8, (e.result -> 'regret_after_interval' ->> 0)::float8,
           (e.result -> 'regret_after_interval' ->> 1)::float8, (e.result ->> 'n_test')::int,
           coalesce((p.result ->> 'promoted')::boolean, false)
    FROM learning.cycles AS c
    JOIN learning.steps AS e ON e.cycle_id = c.id AND e.step = 'evaluate'
    LEFT JOIN learning.steps AS p ON p.cycle_id = c.id AND p.step = 'promote'
    WHERE e.result ->> 'regret_after' IS NOT NULL
    ORDER BY c.night DESC LIMIT %s
"""
_NIGHT = ("night", "regret", "low", "high", "n", "promoted")


def add_state(routes: APIRouter, service: GatewayService, callers: Callers) -> None:
    @routes.get("/v1/state", responses=LOOKS)
    async def state(request: Request) -> Response:
        """Queue, models, router, answers since the start, and regret night by night. Any key may ask."""
        caller = callers.of(request)
        return JsonResponse(await service.run(caller, lambda _: running(service, caller.tenant)))


def running(service: GatewayService, tenant: str) -> dict[str, Any]:
    """All of it, for a caller of `tenant`; asks Postgres once."""
    state, values = service.state(), _values(service.metrics)
    return {
        "object": "state",
        "version": __version__,
        "ready": state.ready,
        "reasons": list(state.blocked),
        "degraded": list(state.degraded),
        "tiers": list(service.tiers),
        "context_bins": list(BINS),
        "encoder": service.answerer.encoder,
        "router": _router(service, state.router_version),
        "queue": _queue(service.asking.admission),
        "models": [_model(each) for each in service.models],
        "answered": _answered(service.metrics),
        "outbox": {
            "waiting": int(values["ruvllm_outbox_depth"]),
            "oldest_seconds": round(values["ruvllm_outbox_oldest_seconds"], 3),
            "failed": int(values["ruvllm_outbox_failed"]),
        },
        "memory": {
            "nodes": int(values["ruvllm_memory_nodes"]) if "ruvllm_memory_nodes" in values else None,
            "replica_ready": bool(values.get("ruvllm_memory_replica_ready", 0.0)),
        },
        "nights": nights(service.database, tenant),
    }


def nights(database: Database, tenant: str) -> list[dict[str, Any]] | None:
    """The last nights that measured regret, the oldest first; None while Postgres is away."""

    def send(connection: Connection) -> Cursor[TupleRow]:
        return connection.execute(_NIGHTS, [MOST_NIGHTS])

    try:
        rows = database.read(send, tenant=tenant)
    except DatabaseError:
        return None
    return [dict(zip(_NIGHT, row, strict=True)) for row in reversed(rows)]


def _router(service: GatewayService, version: str) -> dict[str, Any]:
    return {
        "version": version,
        "sha256": service.router.sha256,
        "cold_start": not version,
        "stale_seconds": round(service.router.stale_s, 3),
    }


def _queue(admission: Admission) -> dict[str, Any]:
    state, bounds = admission.state, admission.bounds
    return {
        "running": state.running,
        "slots": bounds.slots,
        "waiting": state.queued,
        "places": bounds.queue,
        "waiting_tokens": state.queued_tokens,
        "token_places": bounds.queue_tokens,
        "draining": state.draining,
    }


def _model(state: TierState) -> dict[str, Any]:
    return {
        "name": state.name,
        "state": state.state,
        "detail": state.detail,
        "busy": state.busy,
        "resident_mb": state.resident_mb,
        "restarts": state.restarts + state.recycled + state.evicted,
        "quarantined": state.quarantined,
    }


def _values(metrics: Metrics) -> Mapping[str, float]:
    """Metrics without labels, by name."""
    samples = (sample for metric in metrics.registry.collect() for sample in metric.samples)
    return {sample.name: sample.value for sample in samples if not sample.labels}


def _answered(metrics: Metrics) -> dict[str, int]:
    """Answers since the start, by the tier that gave them, the busiest first."""
    counts: dict[str, int] = {}
    for metric in metrics.decisions.collect():
        for sample in metric.samples:
            if sample.name == "ruvllm_router_decisions_total":
                tier = sample.labels["model"]
                counts[tier] = counts.get(tier, 0) + int(sample.value)
    return dict(sorted(counts.items(), key=lambda entry: -entry[1]))
