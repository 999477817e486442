"""inputs.json: what a run of the pipeline is given beside the snapshot. Knows nothing of training.

Digests stand beside the paths, so that dvc sees a changed champion or EWC state without either having to be there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ruvllm.errors import LearningError


@dataclass(frozen=True)
class Given:
    """An optional input, relative to inputs.json."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Inputs:
    version: str
    created_at: str  # ISO 8601; given from outside, so that a repeated run gives the same bytes
    champion: Given | None = None  # a bundle folder; the digest is of its manifest.json
    ewc: Given | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def read_inputs(path: Path) -> Inputs:
    """Parse an inputs.json.

    Raises:
        LearningError: the file is missing or is not one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        given = {name: Given(**document[name]) if document[name] else None for name in ("champion", "ewc")}
        return Inputs(**{**document, **given})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LearningError(f"{path}: not an inputs.json ({error}); run the cycle's train step again") from error
