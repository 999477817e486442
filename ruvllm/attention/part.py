"""The attention part of a router bundle: one optional file beside the router's own. Knows nothing of registries.

A bundle has one version, one digest and one row in the ledger, so its parts are promoted and rolled back together. The
part lies there only where it passed `ruvllm.learning.attention_gate`, and says so in its figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ruvllm.attention.model import AttentionModel, read
from ruvllm.router.bundle import ATTENTION_FILE

FILE = ATTENTION_FILE
PASSED = "gate_passed"  # 1 among the figures of a part that may be used


class Entry(Protocol):
    """What a bundle's manifest says of a file."""

    @property
    def sha256(self) -> str: ...


class Manifested(Protocol):
    """`ruvllm.router.manifest.Manifest` is one."""

    @property
    def files(self) -> Mapping[str, Entry]: ...


class Carrier(Protocol):
    """A router that was loaded from a bundle's folder; `ruvllm.router.runtime.RouterRuntime` is one."""

    @property
    def sha256(self) -> str: ...

    @property
    def path(self) -> Path | None: ...

    @property
    def manifest(self) -> Manifested: ...


def carried(router: Carrier | None) -> AttentionModel | None:
    """The part of this router's bundle; None where there is none, or one that passed no gate.

    Raises:
        ArtifactError: the file is missing, altered or does not give its golden scores.
    """
    if router is None or router.path is None or FILE not in router.manifest.files:
        return None
    model = read(router.path / FILE, router.manifest.files[FILE].sha256)
    return model if model.metrics.get(PASSED) == 1.0 else None
