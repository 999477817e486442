"""Memory over HTTP: search, add, get, delete, neighbours. Knows nothing of how memory finds.

A caller sees their tenant's rows, and of untrusted ones only their own. What they add is untrusted unless the key has
the scope admin, and so is deleting what another wrote.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ruvllm.errors import ForbiddenError, NotFoundError
from ruvllm.memory.filters import Filter
from ruvllm.memory.likeness.conflict import visible
from ruvllm.memory.records import Hit, Neighbourhood, NewNode, Node, Walk
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy.forget import forget_nodes
from ruvllm.serving import replies
from ruvllm.serving.callers import Callers, json_only
from ruvllm.serving.documents import LOOKS, NAMED
from ruvllm.serving.errors import JsonResponse
from ruvllm.serving.keys import Caller
from ruvllm.serving.schemas import MAX_ID, MemoryAdd, MemoryNode, MemorySearch, Name
from ruvllm.serving.service import GatewayService

Id = Annotated[int, Path(ge=1, le=MAX_ID)]
Hops = Annotated[int, Query(ge=1, le=3)]
Limit = Annotated[int, Query(ge=1, le=256)]
User = Annotated[Name | None, Query()]


def add_memory(routes: APIRouter, service: GatewayService, callers: Callers) -> None:
    takes_json = [Depends(json_only)]

    def writer_of(request: Request, caller: Caller, user: str | None) -> str:
        return callers.asked(request, caller).writer_of(user)

    @routes.post("/v1/memory/search", dependencies=takes_json, responses=LOOKS)
    async def search(body: MemorySearch, request: Request) -> Response:
        """The nodes nearest to a question, by meaning, by words, or both."""
        caller = callers.of(request, "memory")
        reader = writer_of(request, caller, body.user)
        hits = await service.run(caller, lambda of: _found(of.memory, body, reader))
        data = [{**replies.node_object(hit.node), "similarity": round(hit.similarity, 6)} for hit in hits]
        return JsonResponse({"object": "list", "data": data})

    @routes.post("/v1/memory", dependencies=takes_json, responses=LOOKS)
    async def add(body: MemoryAdd, request: Request) -> Response:
        """Write nodes; what memory holds already is not written twice."""
        caller = callers.of(request, "memory")
        if any(node.trust != "untrusted" for node in body.nodes):
            caller.require("admin")
        writer = writer_of(request, caller, body.user)
        nodes = [_new(node, writer) for node in body.nodes]
        report = await service.run(caller, lambda of: of.memory.add(nodes))
        return JsonResponse({"ids": list(report.ids), "written": report.written, "skipped": report.skipped})

    @routes.api_route("/v1/memory/search", methods=["GET", "DELETE"], include_in_schema=False)
    async def posted_alone() -> Response:
        """Else it would be a node of the name "search"."""
        raise HTTPException(405, "Method Not Allowed")

    @routes.get("/v1/memory/{id}", responses=NAMED)
    async def get(id: Id, request: Request, user: User = None) -> Response:
        """One node, archived ones too."""
        caller = callers.of(request, "memory")
        reader = writer_of(request, caller, user)
        return JsonResponse(replies.node_object(await service.run(caller, lambda of: _node(of.memory, id, reader))))

    @routes.delete("/v1/memory/{id}", responses=NAMED)
    async def delete(id: Id, request: Request, user: User = None) -> Response:
        """Delete a node for good, with what was only ever said in it."""
        caller = callers.of(request, "memory")
        reader = writer_of(request, caller, user)
        await service.run(caller, lambda of: _delete(of.memory, id, reader, caller))
        return JsonResponse({"id": id, "object": "memory.node", "deleted": True})

    @routes.get("/v1/memory/{id}/neighbours", responses=NAMED)
    async def neighbours(id: Id, request: Request, hops: Hops = 1, limit: Limit = 64, user: User = None) -> Response:
        """What is reached from a node over edges, nearest first, and the edges among it."""
        caller = callers.of(request, "memory")
        reader = writer_of(request, caller, user)
        around, nodes = await service.run(caller, lambda of: _around(of.memory, id, reader, hops, limit))
        return JsonResponse({"object": "list", "data": _reached(around, nodes), "edges": _edges(around)})


def _found(memory: Memory, body: MemorySearch, reader: str) -> list[Hit]:
    wanted = Filter(
        kinds=tuple(body.kinds),
        domains=tuple(body.domains),
        tags=tuple(body.tags),
        min_confidence=body.min_confidence,
        reader=reader,
    )
    if body.mode == "words":
        return memory.search_words(body.query, body.k, filter=wanted)
    if body.mode == "hybrid":
        return memory.hybrid(body.query, body.k, filter=wanted)
    return memory.search_text(body.query, body.k, filter=wanted)


def _new(node: MemoryNode, writer: str) -> NewNode:
    return NewNode(
        node.text,
        kind=node.kind,
        source=node.source,
        domain=node.domain,
        trust=node.trust,
        writer=writer,
        tags=tuple(node.tags),
    )


def _node(memory: Memory, id: int, reader: str) -> Node:
    """
    Raises:
        NotFoundError: it is not there, or another user's own.
    """
    found = memory.get([id])
    if not found or not visible(found[0], reader):
        raise NotFoundError(f"node {id}: memory holds no such node")
    return found[0]


def _delete(memory: Memory, id: int, reader: str, caller: Caller) -> None:
    node = _node(memory, id, reader)
    if "admin" not in caller.scopes and (not reader or node.writer != reader):
        raise ForbiddenError(f'node {id}: somebody else wrote it, this needs "admin"; use a key with that scope')
    forget_nodes(memory.database, [node.uuid], apply=True, only_memory=True)


def _around(memory: Memory, id: int, reader: str, hops: int, limit: int) -> tuple[Neighbourhood, list[Node]]:
    _node(memory, id, reader)
    around = memory.walk([id], Walk(hops=hops, limit=limit, reader=reader))
    return around, memory.get([int(each) for each in around.ids])


def _reached(around: Neighbourhood, nodes: list[Node]) -> list[dict[str, object]]:
    by_id = {node.id: node for node in nodes}
    return [
        {**replies.node_object(by_id[int(id)]), "hops": int(hops), "score": round(float(score), 6)}
        for id, hops, score in zip(around.ids, around.hops, around.scores, strict=True)
        if int(id) in by_id
    ]


def _edges(around: Neighbourhood) -> list[dict[str, object]]:
    return [
        {"src": src, "dst": dst, "relation": relation, "weight": round(weight, 6)}
        for src, dst, relation, weight in around.edges
    ]
