"""The OpenAPI document against what the gateway sends: every operation's own reply, and refusals, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from ruvllm.database.pool import Database
from ruvllm.memory.records import NewNode
from ruvllm.serving.documents import REPLIES
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings
from tests.serving.consoled import add_night, gateway_of
from tests.serving.gateway import client_of, serving

CHAT = {"messages": [{"role": "user", "content": "Where is Accra?"}]}
WHY = {"ruvllm": {"return_decision": True}}
JSON = "application/json"


@pytest.fixture
def real(database: Database, settings: Settings) -> GatewayService:
    return gateway_of(database, settings, lambda prompt: "In Ghana")


@pytest.fixture
def client(real: GatewayService, settings: Settings) -> Iterator[httpx.Client]:
    with serving(settings, real) as url, client_of(url) as client:
        yield client


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def check(document: dict[str, Any], method: str, path: str, response: httpx.Response) -> None:
    """What `response` says against the schema of its status."""
    declared = document["paths"][path][method]["responses"][str(response.status_code)]
    schema = declared["content"][response.headers["content-type"].split(";")[0]]["schema"]
    jsonschema.validate(response.json(), {**schema, "components": document["components"]})


def replies(client: httpx.Client, database: Database, service: GatewayService) -> dict[tuple[str, str], httpx.Response]:
    """A reply of 200 from every operation whose body is an object, with all there is to say in it."""
    first, second = service.answerer.memory.add(
        [NewNode(f"Accra is in Ghana, part {i}.", tags=("t",)) for i in (1, 2)]
    ).ids
    service.answerer.memory.link_all([(first, second, "Cites", 0.5)], "a test")
    add_night(database, 1, 0.4)
    chat = client.post("/v1/chat/completions", json=CHAT | WHY)
    said = {"request_id": chat.json()["id"], "rating": 5}
    search = {"query": "Accra", "k": 2}
    return {
        ("post", "/v1/chat/completions"): chat,
        ("post", "/v1/completions"): client.post("/v1/completions", json={"prompt": "Where?"} | WHY),
        ("post", "/v1/route"): client.post("/v1/route", json=CHAT | {"ruvllm": {"battery": 0.5}}),
        ("post", "/v1/embeddings"): client.post("/v1/embeddings", json={"input": "Accra"}),
        ("post", "/v1/feedback"): client.post("/v1/feedback", json=said),
        ("get", "/v1/models"): client.get("/v1/models"),
        ("get", "/v1/models/{model}"): client.get("/v1/models/auto"),
        ("post", "/v1/memory/search"): client.post("/v1/memory/search", json=search),
        ("post", "/v1/memory"): client.post("/v1/memory", json={"nodes": [{"text": "A new one."}]}),
        ("get", "/v1/memory/{id}"): client.get(f"/v1/memory/{first}"),
        ("get", "/v1/memory/{id}/neighbours"): client.get(f"/v1/memory/{first}/neighbours"),
        ("delete", "/v1/memory/{id}"): client.delete(f"/v1/memory/{second}"),
        ("get", "/v1/state"): client.get("/v1/state"),
        ("get", "/healthz"): client.get("/healthz"),
        ("get", "/readyz"): client.get("/readyz"),
    }


def test_every_operation_replies_as_its_schema_says(
    client: httpx.Client, document: dict[str, Any], database: Database, real: GatewayService
) -> None:
    found = replies(client, database, real)
    assert set(found) == set(REPLIES)
    for (method, path), response in found.items():
        assert response.status_code == 200, (path, response.text)
        check(document, method, path, response)
    lists = [found["get", "/v1/memory/{id}/neighbours"].json(), found["post", "/v1/memory/search"].json()]
    assert all(each["data"] for each in lists)  # an empty list would satisfy any schema
    assert lists[0]["edges"]
    assert found["get", "/v1/state"].json()["nights"]


def test_every_body_that_can_come_has_a_schema(document: dict[str, Any]) -> None:
    without = [
        (method, path, status)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for status, response in operation["responses"].items()
        if not all(content.get("schema") for content in response.get("content", {"": {}}).values())
    ]
    assert without == []


def test_a_schema_that_is_wrong_is_noticed(document: dict[str, Any], client: httpx.Client) -> None:
    wrong = json.loads(json.dumps(document))
    wrong["components"]["schemas"]["ModelReply"]["properties"].pop("owned_by")
    with pytest.raises(jsonschema.ValidationError):
        check(wrong, "get", "/v1/models", client.get("/v1/models"))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("post", "/v1/chat/completions", {"messages": []}),
        ("post", "/v1/chat/completions", CHAT | {"model": "gpt-4"}),
        ("post", "/v1/feedback", {"request_id": "x", "rating": 9}),
        ("get", "/v1/models/{model}", None),
        ("get", "/v1/memory/{id}", None),
        ("delete", "/v1/memory/{id}", None),
    ],
)
def test_refusals_are_as_their_schema_says(
    client: httpx.Client, document: dict[str, Any], method: str, path: str, body: Any
) -> None:
    response = client.request(method, path.format(model="none", id=12345), json=body)
    assert response.status_code in (400, 404)
    check(document, method, path, response)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/v1/memory/1", "DELETE, GET"),
        ("PUT", "/v1/memory/1", "DELETE, GET"),
        ("GET", "/v1/memory/search", "POST"),
        ("DELETE", "/v1/memory/search", "POST"),
        ("GET", "/v1/chat/completions", "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


def test_a_number_is_no_false(client: httpx.Client) -> None:
    assert client.post("/v1/completions", json={"prompt": "Where?", "echo": 0}).status_code == 400
    assert client.post("/v1/completions", json={"prompt": "Where?", "echo": False}).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": "0.5"}, {"max_tokens": "5"}, {"max_tokens": True}, {"stream": 1}, {"seed": "1"}, {"stream": "no"}],
)
def test_a_value_of_another_type_is_refused_not_guessed(client: httpx.Client, wrong: dict[str, Any]) -> None:
    response = client.post("/v1/chat/completions", json=CHAT | wrong)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
