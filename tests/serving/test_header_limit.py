"""Headers over the bound are refused before anything reads them; those at the bound pass."""

from __future__ import annotations

import anyio
import httpx
import pytest
from starlette.responses import PlainTextResponse

from ruvllm.serving.guards import HeaderLimit


@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 431)])
def test_headers_are_bounded_to_the_byte(over: int, status: int) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(HeaderLimit(PlainTextResponse("in"), limit=1000))
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            request = client.build_request("GET", "/", headers={"x": ""})
            used = sum(len(name) + len(value) for name, value in request.headers.raw)
            request.headers["x"] = "y" * (1000 - used + over)
            return await client.send(request)

    response = anyio.run(ask)
    assert response.status_code == status
    if over:
        assert response.json()["error"]["code"] == "headers_too_large"
