"""What a training run has finished, so that one that was killed goes on from there to the same bits.

Knows nothing of networks or losses: finished folds as .npz, the last fit as `saved.Saved` keeps it. Everything carries
its purpose, a digest of data, settings and start; what is of another purpose is made anew and replaced.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.learning.config import Config
from ruvllm.learning.data import Snapshot
from ruvllm.learning.ewc import Ewc
from ruvllm.learning.saved import Saved
from ruvllm.learning.selection import OutOfFold
from ruvllm.router.durable import replace_file

_BY_CHECK = ("tiers", "bins", "confidence", "expected")  # (checks, m, ...)


def purpose_of(snapshot: Snapshot, config: Config, ewc: Ewc | None) -> str:
    """sha256 over what decides the outcome of a training run."""
    state = hashlib.sha256(snapshot.digest.encode())
    state.update(json.dumps(config.as_dict(), sort_keys=True).encode())
    state.update(ewc.to_bytes() if ewc else b"no anchor")
    return state.hexdigest()


@dataclass(frozen=True)
class WorkFolder:
    folder: Path
    purpose: str

    def last_fit(self) -> Saved:
        return Saved(self.folder / "fit.safetensors", self.purpose)

    def read_fold(self, number: int, out: NDArray[np.bool_], into: OutOfFold) -> bool:
        """Fill the rows `out` of `into` with what a finished fold said; False where it was not finished.

        Raises:
            LearningError: the file is damaged.
        """
        path = self._path(number)
        if not path.exists():
            return False
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if str(archive["purpose"]) != self.purpose:
                    return False
                for name in _BY_CHECK:
                    getattr(into, name)[:, out] = archive[name]
                into.fixed[out] = archive["fixed"]
        except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile) as error:
            raise LearningError(f"{path}: damaged ({error}); delete it and the fold is trained anew") from error
        return True

    def write_fold(self, number: int, out: NDArray[np.bool_], found: OutOfFold) -> None:
        """Keep a finished fold.

        Raises:
            LearningError: the disk is full, or the place cannot be written.
        """
        content = io.BytesIO()
        arrays = {name: getattr(found, name)[:, out] for name in _BY_CHECK}
        np.savez(content, purpose=np.array(self.purpose), fixed=found.fixed[out], **arrays)
        path = self._path(number)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, content.getvalue())
        except OSError as error:
            raise LearningError(f"{path}: not written ({error.strerror or error}); free some space") from error

    def remove(self) -> None:
        """After a run that ended: nothing is left to go on from."""
        for path in [*self.folder.glob("fold-*.npz"), self.folder / "fit.safetensors"]:
            path.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"fold-{number}.npz"
