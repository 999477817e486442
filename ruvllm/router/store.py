"""The local cache of promoted bundles: `<root>/<sha256>/` and `current.json`. Knows nothing of the registry.

The gateway starts from here when the registry is away. A reader sees the old current bundle or the new one, never a
mixture; what is damaged is an error that says so, never taken for "none yet".
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from ruvllm.errors import BundleError
from ruvllm.router.bundle import bundle_files, verify_bundle
from ruvllm.router.durable import replace_file, write_folder

_CURRENT = "current.json"
_LEFTOVER_AGE_S = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CurrentBundle:
    """The bundle in service. `version` is the registry's, `path` the verified folder."""

    sha256: str
    version: str
    path: Path


class BundleStore:
    """Bundles under `root`, which is made when the first is installed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def install(self, folder: Path, sha256: str) -> Path:
        """Verify the bundle in `folder` and copy it here; one that is here already and sound is left as it is.

        Raises:
            BundleError: it is not the bundle of that digest, or the disk is full; what was here stays.
        """
        files = bundle_files(folder, sha256)
        target = self._folder(sha256)
        try:
            if target.exists() and not self._set_aside_if_damaged(target, sha256):
                return target
            write_folder(target, files)
        except OSError as error:
            if _is_sound(target, sha256):  # another process installed it meanwhile
                return target
            raise BundleError(f"bundle {sha256}: not installed in {self.root} ({error.strerror or error})") from error
        return target

    def activate(self, sha256: str, version: str) -> CurrentBundle:
        """Make an installed bundle the current one.

        Raises:
            BundleError: it is not installed or damaged, or `current.json` cannot be written; the old one stays current.
        """
        path = self._folder(sha256)
        verify_bundle(path, sha256)
        try:
            os.utime(path)  # `prune` keeps what was current last
            replace_file(self.root / _CURRENT, json.dumps({"sha256": sha256, "version": version}).encode() + b"\n")
        except OSError as error:
            raise BundleError(f"{self.root / _CURRENT}: not written ({error.strerror or error})") from error
        return CurrentBundle(sha256, version, path)

    def current(self) -> CurrentBundle | None:
        """The current bundle, verified; None where none was ever activated.

        Raises:
            BundleError: `current.json` or the bundle that it names is damaged.
        """
        found = self._read_current()
        if found is not None:
            verify_bundle(found.path, found.sha256)
        return found

    def recent(self) -> tuple[Path, ...]:
        """The folders of all bundles that are here, the one that was current last first; unverified."""
        return tuple(sorted(self._installed(), key=lambda path: path.stat().st_mtime_ns, reverse=True))

    def prune(self, keep: int = 3) -> tuple[str, ...]:
        """Delete all but the `keep` bundles that were current last, never the current one. Returns their digests.

        Raises:
            BundleError: `current.json` is damaged, so that it is unknown what must stay.
        """
        if keep < 1:
            raise BundleError(f"bundles to keep: got {keep}, want at least 1")
        current = self._read_current()
        newest_first = [path for path in self.recent() if current is None or path.name != current.sha256]
        doomed = newest_first[keep - (current is not None) :]
        for path in doomed:
            _remove(path)
        self._sweep()
        return tuple(path.name for path in doomed)

    def _sweep(self) -> None:
        """Remove what a killed process left half-written; what is younger may still be in work."""
        for path in self.root.glob(".*-*"):
            if time.time() - path.stat().st_mtime < _LEFTOVER_AGE_S:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _folder(self, sha256: str) -> Path:
        if not _DIGEST.fullmatch(sha256):
            raise BundleError(f"bundle digest {sha256!r}: want 64 hexadecimal digits")
        return self.root / sha256

    def _installed(self) -> list[Path]:
        return [path for path in self.root.iterdir() if _DIGEST.fullmatch(path.name)] if self.root.is_dir() else []

    def _read_current(self) -> CurrentBundle | None:
        path = self.root / _CURRENT
        try:
            content = json.loads(path.read_bytes())
            found = CurrentBundle(content["sha256"], content["version"], self._folder(content["sha256"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(
                f"{path}: damaged ({type(error).__name__}: {error}), want the sha256 and version of a bundle;"
                " delete it and the next promotion check writes it again"
            ) from error
        if not isinstance(found.version, str):
            raise BundleError(f"{path}: version is {found.version!r}, want a text; delete it")
        return found

    def _set_aside_if_damaged(self, target: Path, sha256: str) -> bool:
        """True where the place is free for a sound copy now."""
        if _is_sound(target, sha256):
            return False
        _remove(target)
        return True


def _is_sound(folder: Path, sha256: str) -> bool:
    try:
        verify_bundle(folder, sha256)
    except BundleError:
        return False
    return True


def _remove(folder: Path) -> None:
    """Rename first: a reader finds the folder whole or not at all."""
    doomed = folder.parent / f".doomed-{uuid.uuid4().hex}"
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
