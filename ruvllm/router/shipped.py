"""Which classifiers come with the package, by encoder, each file with its hash. Knows nothing of what is in them.

The feature layout's hash covers this table: a router that was trained on the shares of other classifiers is refused
as one of another layout. `ruvllm.router.fitting` makes the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shipped:
    """A file of ruvllm/router/data."""

    file: str
    sha256: str


CLASSIFIERS: Mapping[str, Shipped] = {
    "all-minilm-l6-v2-int8": Shipped(
        "all-minilm-l6-v2-int8.safetensors", "d20881763e9b5364b2d947e5f1d6142c2acea47c89b078fbf9d8e0dfecd4eab4"
    ),
}


def fingerprint() -> str:
    """What the layout says of the table: the first digits of each hash, in the order of the encoders."""
    return ", ".join(f"{name} {CLASSIFIERS[name].sha256[:12]}" for name in sorted(CLASSIFIERS))
