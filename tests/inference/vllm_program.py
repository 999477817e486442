"""Stands for vLLM's program in tests of how servers are run: started as vLLM is, with its flags; has a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def flag(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._say(200, {"data": [{"id": flag("--served-model-name"), "max_model_len": 2048}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        allowed = self.headers["authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"
        self._say(200 if allowed else 401, {"choices": []})

    def _say(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    told = {"argv": sys.argv, "environment": dict(os.environ), "child": child.pid}
    Path(flag("--model"), "told.json").write_text(json.dumps(told))
    if Path(flag("--model"), "dies").exists():
        sys.exit("out of memory")
    ThreadingHTTPServer((flag("--host"), int(flag("--port"))), Handler).serve_forever()
