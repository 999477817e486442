"""The console's files over HTTP, as they are: no build step, nothing from elsewhere. Knows nothing of what they ask.

The policy in their headers lets a browser load from this gateway alone, and refuses every text that would become
markup or code: what a model or memory says is shown as text or not at all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

FOLDER = Path(__file__).with_name("static")
INDEX = "index.html"
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",  # asked for anew each time, and answered 304 while it is the same
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Page:
    """One file: its bytes, its media type, and an entity tag that is another one whenever the bytes are."""

    content: bytes
    kind: str
    tag: str

    @classmethod
    def of(cls, path: Path) -> Page:
        content = path.read_bytes()
        return cls(content, KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def response(self, known: str) -> Response:
        """304 where `known`, the header If-None-Match, names what is here."""
        headers = {**_HEADERS, "etag": self.tag}
        if self.tag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.kind, headers=headers)


@cache
def pages() -> dict[str, Page]:
    """Every file by its name. A name that is asked for is looked up here and never put into a path."""
    return {path.name: Page.of(path) for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}


def add_pages(routes: APIRouter) -> None:
    """Open to who reaches the port: they hold no data, and what they ask for takes a key where one is wanted."""

    @routes.get("/console", include_in_schema=False)
    async def console() -> Response:
        """Relative, so that a proxy may put the gateway under a path of its own."""
        return RedirectResponse("console/", 308)

    @routes.get("/console/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _page(INDEX, request)

    @routes.get("/console/{name}", include_in_schema=False)
    async def page(name: str, request: Request) -> Response:
        return _page(name, request)


def _page(name: str, request: Request) -> Response:
    found = pages().get(name)
    if found is None:
        raise HTTPException(404, "console: no such file")
    return found.response(request.headers.get("if-none-match", ""))
