"""Streamed answers over real HTTP: pieces as they are made, errors in their place, no work for who has gone."""

from __future__ import annotations

import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from ruvllm.errors import InferenceError, WorkerDiedError
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.service import GatewayService

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Where is Accra?"}]
BODY = {"model": "auto", "messages": MESSAGES, "stream": True}


def client_for(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_the_official_client_reads_pieces_and_the_usage(url: str) -> None:
    with client_for(url) as client:
        chunks = list(
            client.chat.completions.create(
                model="auto", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
        )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert pieces == ["You ", "asked: ", "Where ", "is ", "Accra?"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.model for chunk in chunks} == {"smollm2-135m"}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 25)


def test_the_stream_is_what_the_contract_says(client: httpx.Client) -> None:
    response = client.post(CHAT, json={**BODY, "ruvllm": {"return_decision": True}})
    events = response.text.strip().split("\n\n")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-ruvllm-model"] == "smollm2-135m"
    assert events[-1] == "data: [DONE]"
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["ruvllm"]["context_bin"] == 512
    assert "usage" not in last


def test_an_error_before_the_first_piece_has_its_status(url: str, answerer: FakeAnswerer) -> None:
    answerer.error = WorkerDiedError("gone")
    with client_for(url) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
    assert caught.value.status_code == 503


@pytest.mark.parametrize(
    ("error", "said"), [(InferenceError("it broke"), "it broke"), (ZeroDivisionError("a bug"), "not foreseen")]
)
def test_an_error_behind_the_first_piece_stands_in_the_stream(
    url: str, answerer: FakeAnswerer, error: Exception, said: str
) -> None:
    answerer.late_error = error
    with client_for(url) as client:
        chunks = iter(client.chat.completions.create(model="auto", messages=MESSAGES, stream=True))
        assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "You "]
        with pytest.raises(openai.APIError, match=said):
            next(chunks)


def test_a_reader_who_leaves_ends_the_work_and_frees_the_place(
    client: httpx.Client, answerer: FakeAnswerer, service: GatewayService
) -> None:
    answerer.pause = threading.Event()  # never set by this test
    with client.stream("POST", CHAT, json=BODY) as response:
        assert "You " in next(text for text in response.iter_text() if "You " in text)
    assert answerer.speeches[-1].closed.wait(10)
    assert answerer.speeches[-1].cancelled.is_set()
    assert service.asking.admission.drained(10)


def test_who_hangs_up_on_a_whole_answer_ends_the_work_too(
    url: str, answerer: FakeAnswerer, service: GatewayService
) -> None:
    answerer.pause = threading.Event()
    content = json.dumps({"model": "auto", "messages": MESSAGES}).encode()
    about = f"content-type: application/json\r\ncontent-length: {len(content)}"
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{about}\r\n\r\n"
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        connection.sendall(head.encode() + content)
        assert answerer.began.acquire(timeout=10)
    assert service.asking.admission.drained(10)
    assert answerer.pause.is_set()  # by the cancel


def test_pings_are_sent_while_nothing_is_said(
    client: httpx.Client, answerer: FakeAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ruvllm.serving.chat.PING_S", 0.02)
    answerer.gate = threading.Event()
    with client.stream("POST", CHAT, json=BODY) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line) == ": ping"
        answerer.gate.set()
        assert "data: [DONE]" in list(lines)
