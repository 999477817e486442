"""A gateway behind a real uvicorn in a thread, for the tests of this folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import uvicorn

from ruvllm.serving.__main__ import listen
from ruvllm.serving.app import create_app
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings


@contextmanager
def serving(settings: Settings, service: GatewayService) -> Iterator[str]:
    """The gateway behind a real uvicorn on a free port; its address."""
    with listen("127.0.0.1", 0) as door:
        config = uvicorn.Config(create_app(settings, service), loop="uvloop", http="httptools", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        try:
            _wait_until_up(url, thread)
            yield url
        finally:
            server.should_exit = True
            thread.join(20)


def _wait_until_up(url: str, thread: threading.Thread) -> None:
    while thread.is_alive():
        try:
            httpx.get(f"{url}/healthz", trust_env=False)
        except httpx.TransportError:
            continue
        return


def client_of(url: str) -> AbstractContextManager[httpx.Client]:
    return httpx.Client(base_url=url, timeout=10, trust_env=False)
