"""features.npz: what a training looks at, between the stages features and train. Knows nothing of networks.

It holds the features as this router will see them, their scaling, and the fitted transforms, for one snapshot.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.learning.config import Config
from ruvllm.learning.data import Snapshot
from ruvllm.learning.ewc import Ewc
from ruvllm.learning.fit import Material, Normaliser
from ruvllm.learning.targets import make_targets
from ruvllm.learning.train import Prepared, usable
from ruvllm.router.durable import replace_file
from ruvllm.router.layout import N_FEATURES
from ruvllm.router.transforms import Transforms

_SCALING = ("mean", "scale", "mask")
_TRANSFORMS = ("mean", "components", "centroids", "spread")


def save_prepared(prepared: Prepared, path: Path) -> None:
    """Write features.npz; the same material gives the same bytes.

    Raises:
        LearningError: the disk is full, or the place cannot be written.
    """
    material = prepared.material
    arrays: dict[str, NDArray[Any]] = {
        "snapshot": np.array(material.snapshot.digest),
        "features": material.features,  # (n, 128)
        **{f"scaling.{name}": getattr(material.normaliser, name) for name in _SCALING},  # (128,) each
    }
    if prepared.transforms is not None:
        arrays |= {f"transforms.{name}": array for name, array in prepared.transforms.arrays().items()}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    try:
        replace_file(path, content.getvalue())
    except OSError as error:
        raise LearningError(f"{path}: not written ({error.strerror or error}); free some space") from error


def load_prepared(path: Path, snapshot: Snapshot, config: Config, ewc: Ewc | None) -> Prepared:
    """What `save_prepared` wrote, for the snapshot it was made of.

    Raises:
        LearningError: the file is missing, damaged, or of another snapshot.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        made_of, features = str(arrays["snapshot"]), arrays["features"]
        normaliser = Normaliser(*(arrays[f"scaling.{name}"] for name in _SCALING))
        transforms = _transforms(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise LearningError(f"{path}: missing or damaged ({error}); run the stage features again") from error
    if made_of != snapshot.digest or features.shape != (len(snapshot.features), N_FEATURES):
        raise LearningError(
            f"{path}: of snapshot {made_of[:12]} and shape {features.shape}, want snapshot {snapshot.digest[:12]}; "
            "run the stage features again"
        )
    ewc, warnings = usable(ewc, snapshot, config)
    return Prepared(Material(snapshot, make_targets(snapshot), features, normaliser), transforms, ewc, tuple(warnings))


def _transforms(arrays: dict[str, NDArray[Any]]) -> Transforms | None:
    if "transforms.mean" not in arrays:
        return None
    return Transforms(**{name: arrays[f"transforms.{name}"] for name in _TRANSFORMS})
