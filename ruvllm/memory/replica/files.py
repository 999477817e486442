"""Folders that are whole or not there: staged, hashed, renamed, and verified before a file is parsed.

Knows nothing of what the files hold. A folder is named after the hash of its manifest, and the manifest holds size and
hash of every other file, so a name that is right makes every byte right.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ruvllm.errors import ArtifactError

MANIFEST = "manifest.json"
_BASE, _STAGING, _REFUSED = "base-", "staging-", "refused-"
_LOCK = "lock"
_NAME_LENGTH = 32  # hexadecimal digits: 128 bits
_MAX_MANIFEST = 2**20


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder` to write to, for this process alone; gone afterwards unless it was published."""
    path = folder / f"{_STAGING}{os.getpid()}-{os.urandom(4).hex()}"
    path.mkdir(parents=True, mode=0o700)
    try:
        yield path
    finally:
        remove(path)


def publish(staged: Path, about: Mapping[str, object]) -> Path:
    """Give the staged folder a manifest of `about` and all its files, and its lasting name; it survives a power cut."""
    files = {str(path.relative_to(staged)): _entry(path) for path in _files(staged)}
    text = json.dumps({**about, "files": files}, indent=1, sort_keys=True).encode()
    (staged / MANIFEST).write_bytes(text)
    for path in (*_files(staged), *(p for p in staged.rglob("*") if p.is_dir()), staged):
        _sync(path)
    target = staged.parent / (_BASE + hashlib.sha256(text).hexdigest()[:_NAME_LENGTH])
    if target.exists():  # the same bytes: another process was first
        return target
    staged.rename(target)
    _sync(staged.parent)
    return target


def verified(path: Path) -> dict[str, object]:
    """The manifest of `path`, after size and hash of every file were compared with it.

    Raises:
        ArtifactError: the folder is not as it was published.
    """
    text = _bytes_of(path / MANIFEST)
    if hashlib.sha256(text).hexdigest()[:_NAME_LENGTH] != path.name.removeprefix(_BASE):
        raise ArtifactError(f"{path / MANIFEST}: was altered")
    about: dict[str, object] = json.loads(text)  # its hash was right: we wrote it
    files = about["files"]
    assert isinstance(files, dict)
    there = {str(each.relative_to(path)) for each in _files(path)} - {MANIFEST}
    if odd := sorted(there ^ set(files)):
        raise ArtifactError(f"{path / odd[0]}: is {'missing' if odd[0] in files else 'not in the manifest'}")
    for name, (size, _) in files.items():
        if (got := (path / name).stat().st_size) != size:
            raise ArtifactError(f"{path / name}: got {got} bytes, want {size}")
    for name, (_, digest) in files.items():
        if _hash(path / name) != digest:
            raise ArtifactError(f"{path / name}: sha256 is not the manifest's; the file was altered")
    return about


def published(folder: Path) -> list[Path]:
    """Folders that were published, the latest first."""
    return sorted(folder.glob(f"{_BASE}*"), key=_modified, reverse=True)


def refused(folder: Path) -> list[Path]:
    """Folders that were set aside."""
    return list(folder.glob(f"{_REFUSED}*"))


def touch(folder: Path) -> None:
    """Note that it is used, where it may be written to; see `unused_s`."""
    with suppress(OSError):
        (folder / _LOCK).touch(mode=0o600)


def unused_s(folder: Path) -> float:
    """Seconds since it was last used."""
    return time.time() - max(_modified(folder), _modified(folder / _LOCK))


def set_aside(path: Path) -> None:
    """Keep a refused folder under another name, for whoever wants to know why; an earlier one makes room."""
    for earlier in refused(path.parent):
        remove(earlier)
    with suppress(OSError):  # another process did it
        path.rename(path.with_name(_REFUSED + path.name))


def remove(folder: Path) -> None:
    """Who has it mapped keeps it."""
    shutil.rmtree(folder, ignore_errors=True)


def tidy(folder: Path, keep: Path) -> None:
    """Remove what `keep` replaced and what killed builders left; call it with the builder's lock held."""
    for path in (*folder.glob(f"{_STAGING}*"), *published(folder)):
        if path != keep:
            remove(path)


@contextmanager
def builders_lock(folder: Path) -> Iterator[None]:
    """One process at a time builds in `folder`; the lock goes with the process."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_MANIFEST)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error


def _entry(path: Path) -> tuple[int, str]:
    return path.stat().st_size, _hash(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
