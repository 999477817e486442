"""Who asks, and as whom: the key of a request against the door, the scope that an endpoint needs. JSON bodies only."""

from __future__ import annotations

from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import Request

from ruvllm.errors import AuthenticationError
from ruvllm.serving.door import LOCAL
from ruvllm.serving.keys import Caller, looks_like_key
from ruvllm.serving.schemas import Asked
from ruvllm.serving.service import GatewayService


class Callers:
    """The callers of one gateway."""

    def __init__(self, service: GatewayService) -> None:
        self._service = service

    def of(self, request: Request, scope: str | None = None) -> Caller:
        """
        Raises:
            AuthenticationError: no key that is known.
            ForbiddenError: a key without `scope`.
        """
        peer = request.client.host if request.client else None
        caller = self._caller(request.headers.get("authorization"), peer, request.headers.get("host"))
        if scope is not None:
            caller.require(scope)
        request.state.key = caller.key_id
        return caller

    def _caller(self, authorization: str | None, peer: str | None, site: str | None) -> Caller:
        """OpenAI's clients cannot be made without a key: where none is needed, what is no key of ours is none."""
        door = self._service.door
        if authorization is not None and not looks_like_key(authorization.rpartition(" ")[2]):
            with suppress(AuthenticationError):
                return door.caller(None, peer, site)
        return door.caller(authorization, peer, site)

    def asked(self, request: Request, caller: Caller) -> Asked:
        """What a request's texts are asked under."""
        key = "" if caller.key_id == LOCAL else caller.key_id
        return Asked(request.state.request_id, self._service.tiers, key)


async def json_only(request: Request) -> None:
    """A dependency of every endpoint that takes a body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"content-type: got {kind[:100] or 'none'}, want application/json")
