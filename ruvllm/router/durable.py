"""Files and folders that appear whole or not at all, and survive a power cut. Knows nothing of bundles."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` with `files` in it: written beside it, synced, then renamed. On an error nothing is left.

    Raises:
        FileExistsError: the folder is there.
        OSError: the disk is full, or the place cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".partial-{uuid.uuid4().hex}"
    try:
        partial.mkdir()
        for name, content in files.items():
            _write_synced(partial / name, content)
        _sync_folder(partial)
        if folder.exists():  # rename() would replace an empty folder without a word
            raise FileExistsError(f"{folder} is there already")
        partial.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already where the rename went well


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` in place of `path`: a reader sees the old or the new, whatever happens in between.

    Raises:
        OSError: the disk is full, or the place cannot be written; the old content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".partial-{uuid.uuid4().hex}"
    try:
        _write_synced(partial, content)
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
