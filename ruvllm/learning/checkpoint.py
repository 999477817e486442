"""training.safetensors: the parameters as they are trained, beside the folded ones that serve. Knows nothing of losses.

It lies in the bundle's folder for the learner (the Fisher information is of these parameters); the manifest does not
list it and the runtime does not read it. It names the bundle it belongs to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save

from ruvllm.errors import LearningError
from ruvllm.learning.config import Config, parse_config
from ruvllm.learning.ewc import Origin, read_tensors
from ruvllm.router.bundle import Bundle, read_bundle
from ruvllm.router.durable import replace_file
from ruvllm.router.fastgrnn import Cell, RouterNetwork

FILE = "training.safetensors"
_META = "ruvllm"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    network: RouterNetwork
    config: Config
    warnings: tuple[str, ...]
    bundle: Bundle

    @property
    def origin(self) -> Origin:
        return origin_of(self.bundle)


def origin_of(bundle: Bundle) -> Origin:
    manifest = bundle.manifest
    return Origin(
        manifest.version, manifest.ladder, manifest.tiers, manifest.encoder_id, manifest.layout_hash, manifest.variant
    )


def save_checkpoint(
    folder: Path, network: RouterNetwork, config: Config, warnings: tuple[str, ...], bundle_sha256: str
) -> None:
    """Write training.safetensors into a bundle's folder.

    Raises:
        LearningError: the disk is full, or the place cannot be written.
    """
    arrays = {name: np.array(value.numpy(), order="C") for name, value in network.state_dict().items()}
    about = {"config": config.as_dict(), "warnings": warnings, "bundle": bundle_sha256}
    try:
        replace_file(folder / FILE, save(arrays, metadata={_META: json.dumps(about, sort_keys=True)}))
    except OSError as error:
        raise LearningError(f"{folder / FILE}: not written ({error.strerror or error}); free some space") from error


def load_checkpoint(folder: Path) -> Checkpoint:
    """The network that a bundle was folded from.

    Raises:
        BundleError: the bundle is not whole.
        LearningError: training.safetensors is missing, altered, or of another bundle.
    """
    bundle = read_bundle(folder)
    try:
        arrays, about = read_tensors(folder / FILE)
        config = parse_config(about["config"])
        router = config.router
        network = RouterNetwork(
            Cell(router.variant, router.hidden, router.rank, router.reset_gate), decides=router.decides
        )
        network.load_state_dict({name: torch.as_tensor(values) for name, values in arrays.items()})
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise LearningError(f"{folder / FILE}: missing or altered ({error}); train again") from error
    if about["bundle"] != bundle.sha256 or not _folds_to(network, bundle):
        raise LearningError(f"{folder / FILE}: does not belong to bundle {bundle.sha256[:12]}; train again")
    return Checkpoint(network, config, tuple(about["warnings"]), bundle)


def _folds_to(network: RouterNetwork, bundle: Bundle) -> bool:
    folded = network.export_arrays()
    same = all(np.allclose(folded[name], values, rtol=0, atol=1e-6) for name, values in bundle.arrays.items())
    return same and set(folded) == set(bundle.arrays)
