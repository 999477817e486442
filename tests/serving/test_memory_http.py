"""The gateway over a real answerer and a real Postgres: memory's endpoints, and feedback that becomes memory."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from ruvllm.answering.answer import Answerer, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.router.store import BundleStore
from ruvllm.serving.admission import CallerLimits
from ruvllm.serving.keys import Caller
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings
from tests.serving.gateway import client_of, serving

CAPITAL = "Ghana - Geography. Capital: Accra. Location: Western Africa."
QUESTION = "What is the capital of Ghana?"


@pytest.fixture
def memory(database: Database, settings: Settings) -> Memory:
    return Memory(database, EmbeddingAdapter(HashingEncoder()), settings)


@pytest.fixture
def real(memory: Memory, database: Database, settings: Settings) -> GatewayService:
    ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
    pool = ModelPool(settings, ladder, start=lambda tier: FakeModel(answer=lambda text: "Kumasi is the capital"))
    answerer = Answerer(settings, Perception(settings, memory.embedder, memory), pool, Interactions(database), seed=1)
    return GatewayService(answerer, database, BundleStore(settings.router_dir), settings)


@pytest.fixture
def client(real: GatewayService, settings: Settings) -> Iterator[httpx.Client]:
    with serving(settings, real) as url, client_of(url) as client:
        yield client


def test_nodes_are_added_found_shown_and_deleted(client: httpx.Client) -> None:
    added = client.post("/v1/memory", json={"nodes": [{"text": CAPITAL, "tags": ["africa"]}], "user": "ann"}).json()
    assert (added["written"], added["skipped"]) == (1, 0)
    [id] = added["ids"]
    for mode in ("meaning", "words", "hybrid"):
        body = {"query": "the capital of Ghana", "mode": mode, "user": "ann", "tags": ["africa"]}
        found = client.post("/v1/memory/search", json=body).json()["data"]
        assert [hit["id"] for hit in found] == [id], mode
    shown = client.get(f"/v1/memory/{id}", params={"user": "ann"}).json()
    assert (shown["text"], shown["trust"], shown["writer"]) == (CAPITAL, "untrusted", "ann")
    assert client.delete(f"/v1/memory/{id}", params={"user": "ann"}).json()["deleted"]
    gone = client.get(f"/v1/memory/{id}", params={"user": "ann"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


def test_what_one_user_wrote_is_hidden_from_another(client: httpx.Client) -> None:
    [id] = client.post("/v1/memory", json={"nodes": [{"text": CAPITAL}], "user": "ann"}).json()["ids"]
    ben = {"user": "ben"}
    assert client.post("/v1/memory/search", json={"query": CAPITAL, **ben}).json()["data"] == []
    assert client.get(f"/v1/memory/{id}", params=ben).status_code == 404
    assert client.get(f"/v1/memory/{id}/neighbours", params=ben).status_code == 404
    assert client.delete(f"/v1/memory/{id}", params=ben).status_code == 404


def test_neighbours_come_with_their_edges(client: httpx.Client, memory: Memory) -> None:
    first, second, third = memory.add([NewNode(f"Passage {i} of a book.") for i in range(3)]).ids
    memory.link_all([(first, second, "Follows", 0.5), (second, third, "Follows", 0.5)], "a test")
    near = client.get(f"/v1/memory/{first}/neighbours").json()
    far = client.get(f"/v1/memory/{first}/neighbours", params={"hops": 2}).json()
    assert [(node["id"], node["hops"]) for node in near["data"]] == [(first, 0), (second, 1)]
    assert near["edges"] == [{"src": first, "dst": second, "relation": "Follows", "weight": 0.5}]
    assert [node["id"] for node in far["data"]] == [first, second, third]


def test_trust_and_others_nodes_take_the_scope_admin(
    client: httpx.Client, real: GatewayService, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    [id] = memory.add([NewNode(CAPITAL)]).ids
    caller = Caller("k1", "default", frozenset({"memory"}), CallerLimits())
    monkeypatch.setattr(real.door, "caller", lambda authorization, peer, site: caller)
    told = client.post("/v1/memory", json={"nodes": [{"text": "Trust me.", "trust": "system"}]})
    assert (told.status_code, told.json()["error"]["code"]) == (403, "insufficient_scope")
    assert client.delete(f"/v1/memory/{id}").status_code == 403
    assert memory.get([id])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/memory", {"nodes": []}),
        ("POST", "/v1/memory", {"nodes": [{"text": "a\x00b"}]}),
        ("POST", "/v1/memory", {"nodes": [{"text": "\ud800"}]}),
        ("POST", "/v1/memory", {"nodes": [{"text": "x", "kind": "Secret"}]}),
        ("POST", "/v1/memory", {"nodes": [{"text": "x", "embedding": [0.0]}]}),
        ("POST", "/v1/memory/search", {"query": ""}),
        ("POST", "/v1/memory/search", {"query": "x", "k": 65}),
        ("GET", "/v1/memory/0", None),
        ("GET", f"/v1/memory/{2**63}", None),
        ("GET", "/v1/memory/x/neighbours", None),
    ],
)
def test_what_memory_cannot_hold_is_refused(client: httpx.Client, method: str, path: str, body: object) -> None:
    content = None if body is None else json.dumps(body)  # ASCII: httpx's own JSON cannot hold a lone surrogate
    response = client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


def test_feedback_outranks_and_a_correction_becomes_the_users_fact(
    client: httpx.Client, real: GatewayService, database: Database
) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "user": "ann"}
    reply = client.post("/v1/chat/completions", json=body).json()
    said = {"request_id": reply["id"], "correction": "Accra", "user": "ann"}
    assert client.post("/v1/feedback", json=said).status_code == 200
    real.settle()
    with database.transaction() as connection:
        scored = connection.execute("SELECT quality, quality_source FROM serving.interactions").fetchall()
        facts = connection.execute(
            "SELECT n.kind, n.trust, t.source, t.writer, t.text, t.metadata->>'answer', t.metadata->>'quality_source'"
            " FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id"
        ).fetchall()
    assert scored == [(0.0, "feedback")]
    fact = ("Fact", "untrusted", "qa_pair", "ann", f"Q: {QUESTION}\nA: Accra", "Accra", "feedback")
    assert facts == [fact]  # and the wrong answer was not kept
    found = client.post("/v1/memory/search", json={"query": QUESTION, "user": "ann"}).json()["data"]
    assert [node["text"] for node in found] == [f"Q: {QUESTION}\nA: Accra"]
