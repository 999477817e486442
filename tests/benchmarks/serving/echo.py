"""The floor: a FastAPI application that parses a chat request and says something back, and does nothing in between.

python -m tests.benchmarks.serving.echo
"""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from ruvllm.serving.__main__ import listen
from ruvllm.serving.errors import JsonResponse
from ruvllm.serving.schemas import ChatRequest

app = FastAPI()


@app.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request) -> Response:
    return JsonResponse({"choices": [{"message": {"role": "assistant", "content": body.messages[-1].content}}]})


if __name__ == "__main__":
    with listen("127.0.0.1", 0) as door:
        print(f"http://127.0.0.1:{door.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_config=None)
        uvicorn.Server(config).run(sockets=[door])
