"""Asks a running gateway one question over HTTP, as a client would; knows nothing of its insides."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from ruvllm.errors import ProcessError, SettingsError
from ruvllm.settings import Settings

_RELOAD_S = 15.0  # the gateway looks at the ledger every 1.5 s


@dataclass(frozen=True)
class Reply:
    """`router_version` is what the gateway said decided the answer."""

    question: str
    text: str
    model: str
    router_version: str


def ask_gateway(settings: Settings, router_version: str, question: str) -> Reply:
    """The gateway's answer, once `router_version` decides; a gateway is started where none runs, and then ended.

    Raises:
        ProcessError: it did not start, did not answer, or another router still decides after 15 s.
    """
    from ruvllm.services import gateway_running

    with (
        gateway_running(settings) as url,
        httpx.Client(base_url=url, timeout=settings.deadline_s, trust_env=False, headers=_key(settings)) as client,
    ):
        _wait_for(client, router_version)
        return _ask(client, question)


def _key(settings: Settings) -> dict[str, str]:
    if not settings.probe_key_file:
        return {}
    try:
        key = Path(settings.probe_key_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"RUVLLM_PROBE_KEY_FILE: {error}; want a file with one API key") from error
    return {"authorization": f"Bearer {key}"}


def _wait_for(client: httpx.Client, router_version: str) -> None:
    deadline = time.monotonic() + _RELOAD_S
    while (found := _get_ready(client).get("router_version")) != router_version:
        if time.monotonic() > deadline:
            raise ProcessError(
                f"gateway {client.base_url}: router {found!r} decides, want {router_version!r}; "
                f"{client.base_url}readyz says why"
            )
        time.sleep(0.2)


def _get_ready(client: httpx.Client) -> dict[str, object]:
    try:
        content: dict[str, object] = client.get("/readyz").json()
    except (httpx.HTTPError, ValueError) as error:
        raise ProcessError(f"gateway {client.base_url}: {error}; see its log (ruvllm status)") from error
    return content


def _ask(client: httpx.Client, question: str) -> Reply:
    body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
    try:
        response = client.post("/v1/chat/completions", json=body)
        content = response.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise ProcessError(f"gateway {client.base_url}: {error}; see its log (ruvllm status)") from error
    text = content["choices"][0]["message"]["content"]
    return Reply(question, text, content["model"], response.headers["x-ruvllm-router-version"])
