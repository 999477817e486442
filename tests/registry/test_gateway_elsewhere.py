"""The night asks the gateway that RUVLLM_GATEWAY_URL names, with its key, and starts none here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ruvllm import services
from ruvllm.errors import ProcessError, SettingsError
from ruvllm.serving.probe import ask_gateway
from ruvllm.settings import Settings, load_settings

KEY = "a-key-of-the-night"


class Elsewhere(BaseHTTPRequestHandler):
    """A gateway by what it says; it answers whoever has the key."""

    def do_GET(self) -> None:
        self._say({"router_version": "night-0007"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.headers["authorization"] != f"Bearer {KEY}":
            return self._say({}, 401)
        return self._say({"model": "small", "choices": [{"message": {"content": "Accra"}}]})

    def _say(self, content: dict[str, object], status: int = 200) -> None:
        self.send_response(status)
        self.send_header("x-ruvllm-router-version", "night-0007")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def elsewhere(settings: Settings) -> Iterator[Settings]:
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield replace(settings, gateway_url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_the_question_goes_there_and_nothing_is_started(elsewhere: Settings, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    reply = ask_gateway(replace(elsewhere, probe_key_file=str(tmp_path / "key")), "night-0007", "What is it?")
    assert (reply.text, reply.router_version) == ("Accra", "night-0007")
    assert not services.is_running(elsewhere, "gateway")


def test_without_the_key_it_is_the_gateway_that_is_named(elsewhere: Settings) -> None:
    with pytest.raises(ProcessError, match=f"gateway {elsewhere.gateway_url}.*401"):
        ask_gateway(elsewhere, "night-0007", "What is it?")


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(SettingsError, match="RUVLLM_GATEWAY_URL: got 'gateway:8000', want http://"):
        load_settings({"RUVLLM_GATEWAY_URL": "gateway:8000"})
