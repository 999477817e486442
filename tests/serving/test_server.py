"""How the gateway's server begins and ends a connection: late headers, SIGTERM while it answers, clients that retry."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
import uvicorn

from ruvllm.answering.answer import Ask
from ruvllm.errors import OverloadedError
from ruvllm.serving.__main__ import listen
from ruvllm.serving.app import create_app
from ruvllm.serving.fake import FakeAnswerer, FakeSpeech
from ruvllm.serving.server import GatewayServer, TimelyHeaders
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings
from tests.serving.gateway import client_of

CHAT = "/v1/chat/completions"
BODY = {"model": "auto", "messages": [{"role": "user", "content": "Hello?"}]}


class Impatient(TimelyHeaders):
    headers_s = 0.2


class Patient(TimelyHeaders):
    headers_s = 1.0


@contextmanager
def served(
    settings: Settings, service: GatewayService, http: type[TimelyHeaders] = TimelyHeaders
) -> Iterator[tuple[GatewayServer, threading.Thread, int]]:
    """As `python -m ruvllm.serving` runs it, in a thread; the port."""
    with listen("127.0.0.1", 0) as door:
        config = uvicorn.Config(create_app(settings, service), loop="uvloop", http=http, log_config=None)
        server = GatewayServer(config, service, 20)
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        port = door.getsockname()[1]
        try:
            while thread.is_alive() and not server.started:
                thread.join(0.01)
            yield server, thread, port
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: a\r\n"], ids=["nothing", "half of it"])
def test_who_does_not_end_the_headers_is_hung_up_on(settings: Settings, service: GatewayService, sent: bytes) -> None:
    with (
        served(settings, service, Impatient) as (_, _, port),
        socket.create_connection(("127.0.0.1", port), timeout=20) as slow,
    ):
        slow.sendall(sent)
        assert slow.makefile("rb").read().startswith(b"HTTP/1.1 408")  # and then its end, or this times out


def test_a_second_request_of_a_connection_is_held_to_the_same(settings: Settings, service: GatewayService) -> None:
    with (
        served(settings, service, Impatient) as (_, _, port),
        socket.create_connection(("127.0.0.1", port), timeout=20) as slow,
    ):
        slow.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\nGET /healthz HTTP/1.1\r\n")
        read = slow.makefile("rb").read()
    assert read.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in read


def test_an_answer_may_take_longer_than_headers_may(
    settings: Settings, service: GatewayService, answerer: FakeAnswerer
) -> None:
    """Whatever the bound on headers, it ends with them: here it is over long before the answer is there."""
    answerer.gate = threading.Event()
    with served(settings, service, Patient) as (_, _, port), client_of(f"http://127.0.0.1:{port}") as client:
        timer = threading.Timer(2 * Patient.headers_s, answerer.gate.set)
        timer.start()
        assert client.post("/v1/chat/completions", json=BODY).status_code == 200


def test_on_sigterm_it_says_not_ready_and_ends_what_it_began(
    settings: Settings, service: GatewayService, answerer: FakeAnswerer
) -> None:
    answerer.pause = threading.Event()
    with served(settings, service) as (server, thread, port), client_of(f"http://127.0.0.1:{port}") as client:
        with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
            lines = response.iter_lines()
            assert "You" in next(line for line in lines if "You" in line)
            server.handle_exit(signal.SIGTERM, None)
            with client_of(f"http://127.0.0.1:{port}") as other:  # its door is open, or this would be refused
                ready = other.get("/readyz")
                refused = other.post("/v1/chat/completions", json=BODY)
            assert (ready.status_code, ready.json()["reasons"]) == (503, ["shutting down"])
            assert (refused.status_code, bool(refused.headers["retry-after"])) == (503, True)
            answerer.pause.set()
            assert "data: [DONE]" in list(lines)
        thread.join(20)
        assert not thread.is_alive()


def test_the_official_client_tries_again_by_itself(
    url: str, answerer: FakeAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time 503 with Retry-After, which the client waits for."""
    stream, asked = answerer.stream, []

    def full_at_first(ask: Ask) -> FakeSpeech:
        asked.append(ask)
        if len(asked) == 1:
            raise OverloadedError("full")
        return stream(ask)

    monkeypatch.setattr(answerer, "stream", full_at_first)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client:
        reply = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hello?"}])
    assert reply.choices[0].message.content == "You asked: Hello?"
    assert len(asked) == 2


def test_readers_who_leave_in_mid_stream_leave_no_descriptor_and_no_place(
    url: str, service: GatewayService, answerer: FakeAnswerer
) -> None:
    def ask_and_leave() -> None:
        answerer.pause = threading.Event()
        with client_of(url) as client, client.stream("POST", CHAT, json={**BODY, "stream": True}) as response:
            next(response.iter_bytes())
        assert service.asking.admission.drained(20)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    ask_and_leave()
    before = descriptors()
    for _ in range(60):
        ask_and_leave()
    assert descriptors() < before + 30  # one that leaked with each would be 60
