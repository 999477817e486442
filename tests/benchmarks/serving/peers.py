"""What users have in place of a gateway like ours, before the same model that says a word: LiteLLM's proxy.

It is no dependency of ours: give the interpreter of an environment that has `litellm[proxy]`. It sees no memory and
decides nothing, so what it takes is the cost of a proxy alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_RUN = "import sys; from litellm.proxy.proxy_cli import run_server; sys.argv[0] = 'litellm'; run_server()"
_START_S = 120.0
_VERSION = "import importlib.metadata as m; print(m.version('litellm'))"


def version(python: Path) -> str:
    """LiteLLM's in that environment."""
    return subprocess.run([python, "-c", _VERSION], check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def litellm(python: Path, model_url: str, folder: Path, port: int) -> Iterator[tuple[str, int]]:
    """(address, process id) of a proxy whose `auto` is the model at `model_url`; ended at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    config, url = folder / "litellm.json", f"http://127.0.0.1:{port}"  # JSON is YAML
    to = {"model": "openai/scripted", "api_base": f"{model_url}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": "auto", "litellm_params": to}]}))
    where = ("--host", "127.0.0.1", "--port", str(port), "--telemetry", "False")
    command = [python, "-c", _RUN, "--config", config, *where]
    environment = {
        **os.environ,
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no look at the web
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # open on loopback, as ours is here
    }
    with (folder / "litellm.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        _wait(url, process, folder / "litellm.log")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < ends, log.read_text()[-2000:]
        try:
            if httpx.get(f"{url}/health/liveliness", timeout=2.0, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
