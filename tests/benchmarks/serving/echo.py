"""The floor: a FastAPI application that parses a chat request and says a word back, and does nothing in between.

python -m tests.benchmarks.serving.echo
"""

from __future__ import annotations

import time

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from ruvllm.serving.__main__ import listen
from ruvllm.serving.errors import JsonResponse
from ruvllm.serving.schemas import ChatRequest

app = FastAPI()


@app.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request) -> Response:
    """A whole reply of OpenAI's form, so that a proxy can stand before it."""
    message = {"role": "assistant", "content": "Accra"}
    return JsonResponse(
        {
            "id": "chatcmpl-1", "object": "chat.completion", "created": int(time.time()), "model": body.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21},
        }
    )  # fmt: skip


if __name__ == "__main__":
    with listen("127.0.0.1", 0) as door:
        print(f"http://127.0.0.1:{door.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_config=None)
        uvicorn.Server(config).run(sockets=[door])
