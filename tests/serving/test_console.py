"""The console's files and GET /v1/state over real HTTP: nothing foreign, nothing from outside its folder, no leak."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import AuthenticationError
from ruvllm.serving.admission import CallerLimits
from ruvllm.serving.console.pages import FOLDER, POLICY, pages
from ruvllm.serving.console.running import nights
from ruvllm.serving.keys import Caller
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings
from tests.serving.consoled import add_night, gateway_of
from tests.serving.gateway import client_of, serving

CHAT = {"messages": [{"role": "user", "content": "Where is Accra?"}]}


@pytest.fixture
def real(database: Database, settings: Settings) -> GatewayService:
    return gateway_of(database, settings, lambda prompt: "In Ghana")


@pytest.fixture
def asked(real: GatewayService, settings: Settings) -> Iterator[httpx.Client]:
    with serving(settings, real) as url, client_of(url) as client:
        yield client


def test_the_page_and_all_it_names_are_served_with_the_policy(client: httpx.Client) -> None:
    page = client.get("/console", follow_redirects=True)
    assert page.url.path == "/console/"
    named = set(re.findall(r'(?:src|href)="([\w.]+)"', page.text))
    assert {"app.js", "style.css", "mark.svg"} <= named
    imported = {name for file in pages().values() for name in re.findall(rb'from "\./([\w.]+)"', file.content)}
    for name in named | {name.decode() for name in imported}:
        found = client.get(f"/console/{name}")
        assert (found.status_code, found.headers["content-security-policy"]) == (200, POLICY), name
        assert found.headers["x-content-type-options"] == "nosniff"
    assert client.get("/console/app.js").headers["content-type"].startswith("text/javascript")


def test_the_policy_forbids_what_is_foreign() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == rules["style-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"


def test_no_file_names_another_address_or_makes_markup_of_text() -> None:
    never = re.compile(
        rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|<script>|style=\""
    )
    for path in FOLDER.iterdir():
        text = path.read_bytes()
        assert not never.search(text), path.name
        addresses = set(re.findall(rb"(?:https?:)?//[\w.-]+\.\w+[^\s\"]*", text))
        assert addresses <= {b"http://www.w3.org/2000/svg"}, path.name


@pytest.mark.parametrize(
    "name", ["none.js", "..%2Fpages.py", "..%2f..%2fservice.py", "%2Fetc%2Fpasswd", "pages.py", ""]
)
def test_only_its_own_files_are_there(client: httpx.Client, name: str) -> None:
    found = client.get(f"/console/{name}")
    if name == "":
        assert found.text.startswith("<!doctype html>")
    else:
        assert (found.status_code, found.json()["error"]["type"]) == (404, "invalid_request_error")


def test_a_file_that_is_known_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/console/app.js")
    again = client.get("/console/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/console/app.js", headers={"if-none-match": '"of another version"'})
    assert other.content == first.content


def test_it_can_be_turned_off(settings: Settings, service: GatewayService) -> None:
    with serving(replace(settings, console=False), service) as url, client_of(url) as client:
        for path in ("/console", "/console/", "/console/app.js"):
            assert client.get(path).status_code == 404
        assert client.get("/v1/state").status_code == 200


# --- the running state ------------------------------------------------------------------------------------------------


def test_the_state_says_what_runs_and_what_was_answered(asked: httpx.Client) -> None:
    before = asked.get("/v1/state").json()
    assert (before["tiers"], before["answered"]) == (["smollm2-135m", "gemma3-270m"], {})
    assert before["queue"]["running"] == before["queue"]["waiting"] == 0
    assert (before["queue"]["slots"], before["queue"]["places"]) == (4, 8)
    assert before["router"] == {**before["router"], "version": "", "cold_start": True}
    assert [model["name"] for model in before["models"]] == before["tiers"]
    tier = asked.post("/v1/chat/completions", json=CHAT).json()["model"]
    asked.post("/v1/chat/completions", json=CHAT | {"model": tier})
    assert asked.get("/v1/state").json()["answered"] == {tier: 2}


def test_regret_is_of_the_nights_that_measured_it_the_oldest_first(asked: httpx.Client, database: Database) -> None:
    for night, regret in ((1, 0.4), (2, None), (3, 0.25)):
        add_night(database, night, regret, promoted=night == 3)
    trend = asked.get("/v1/state").json()["nights"]
    assert [(night["night"], night["regret"], night["promoted"]) for night in trend] == [
        (1, 0.4, False),
        (3, 0.25, True),
    ]
    assert (trend[1]["low"], trend[1]["high"], trend[1]["n"]) == (0.2, 0.3, 120)


def test_one_tenant_sees_no_other_ones_nights(database: Database, database_url: str) -> None:
    other = Database(database_url, "other")
    add_night(other, 1, 0.4)
    other.close()
    assert nights(database, "default") == []
    assert [(night["night"], night["regret"]) for night in nights(database, "other") or []] == [(1, 0.4)]


def test_without_postgres_the_rest_is_said(client: httpx.Client) -> None:
    state = client.get("/v1/state").json()
    assert (state["nights"], state["tiers"]) == (None, ["smollm2-135m", "gemma3-270m"])


def test_the_state_takes_a_key_where_one_is_wanted(
    client: httpx.Client, service: GatewayService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def caller(authorization: str | None, peer: str | None, site: str | None) -> Caller:
        if authorization is None:
            raise AuthenticationError("no API key")
        return Caller("k1", "default", frozenset(), CallerLimits())

    monkeypatch.setattr(service.door, "caller", caller)
    assert client.get("/v1/state").status_code == 401
    assert client.get("/console/").status_code == 200
    assert client.get("/v1/state", headers={"authorization": "Bearer k"}).status_code == 200
