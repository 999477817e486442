"""Pulls a model file from a hub: resumed where it broke off, verified before it gets its name. Knows nothing of GGUF.

HF_ENDPOINT names another hub or mirror of the same layout. While a file is not whole it is `<file>.part`, and
`<file>.part.json` says which version (ETag) of which address it is part of.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ruvllm.errors import ModelFileError
from ruvllm.inference import files
from ruvllm.inference.tiers import Tier
from ruvllm.progress import Progress, silent
from ruvllm.settings import Settings

if TYPE_CHECKING:
    import httpx

HUB = "https://huggingface.co"
_TIMEOUT_S = 30.0  # without a byte


def pull(tier: Tier, settings: Settings, progress: Progress = silent, endpoint: str | None = None) -> Path:
    """Download the tier's file unless it is there, check its hash, give it its name.

    Raises:
        ModelFileError: no such address, the connection broke (what came is kept; run it again), the disk is full, or
            the file is not the one that was pinned or recorded.
    """
    if not tier.packages and not (settings.models_dir / tier.file).is_file():
        base = endpoint or os.environ.get("HF_ENDPOINT") or HUB
        _download(f"{base.rstrip('/')}/{tier.repository}/resolve/main/{tier.file}", tier, settings, progress)
    return files.ensure(tier, settings, progress)


def _download(url: str, tier: Tier, settings: Settings, progress: Progress) -> None:
    import httpx

    path = settings.models_dir / tier.file
    part = path.with_name(path.name + ".part")
    with files.alone(path, wait=False), files.writing(part, "ab", keep=True) as out:
        try:
            announced = _fetch(url, out, progress)
        except httpx.HTTPError as error:
            raise ModelFileError(
                f"{url}: {error or type(error).__name__} after {out.tell()} bytes; "
                f'run "ruvllm models pull {tier.name}" to resume'
            ) from error
        out.flush()
        _check(
            files.hash_file(part, progress), tier.sha256 or files.locked_hash(tier, settings) or announced, part, url
        )
        files.publish(out, path)
    _note(part).unlink(missing_ok=True)


def _check(got: str, expected: str, part: Path, url: str) -> None:
    if not expected or got == expected:
        return
    part.unlink()
    _note(part).unlink(missing_ok=True)
    raise ModelFileError(f"{url}: sha256 is {got}, expected {expected}; the download was deleted, pull it again")


def _fetch(url: str, out: BinaryIO, progress: Progress) -> str:
    """Appends what is missing to `out`; returns the sha256 that the hub announces, or an empty string."""
    import httpx

    headers = _resume_headers(url, out)
    with (
        httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        if response.headers.get("content-range") == f"bytes */{out.tell()}":  # 416: what is kept is all there is
            return _announced_hash(response)
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            _begin(out, url, response.headers.get("etag", ""))
        _append(response, out, progress)
        return _announced_hash(response)


def _append(response: httpx.Response, out: BinaryIO, progress: Progress) -> None:
    kept = out.tell()
    total = kept + int(response.headers.get("content-length", 0))
    for block in response.iter_raw():  # as it comes, so that what a broken connection had sent is kept
        out.write(block)
        progress(out.tell(), total, Path(out.name).stem)
    out.flush()


def _announced_hash(response: httpx.Response) -> str:
    """The hub answers for a big file with a redirect whose X-Linked-Etag is the file's sha256."""
    for step in (*response.history, response):
        tag = step.headers.get("x-linked-etag", "").strip('"')
        if len(tag) == 64:
            return str(tag)
    return ""


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _resume_headers(url: str, out: BinaryIO) -> dict[str, str]:
    """If-Range makes the hub send the whole file when it is another version by now; a weak tag cannot say that."""
    plain = {"Accept-Encoding": "identity"}  # a compressed body has no byte ranges of the file
    kept, note = out.tell(), files.read_json(_note(Path(out.name)))
    etag = note.get("etag", "") if isinstance(note, dict) and note.get("url") == url else ""
    if not kept or not etag or etag.startswith("W/"):
        return plain
    return {**plain, "Range": f"bytes={kept}-", "If-Range": etag}


def _begin(out: BinaryIO, url: str, etag: str) -> None:
    out.truncate(0)
    out.seek(0)
    files.write_json(_note(Path(out.name)), {"url": url, "etag": etag})
