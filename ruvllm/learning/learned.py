"""network.safetensors: a network as it was trained and what was chosen for it, between the stages train and compress.

Knows nothing of snapshots, losses or bundles.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save

from ruvllm.errors import LearningError
from ruvllm.evaluation.selective import Selective
from ruvllm.learning.config import Config
from ruvllm.learning.ewc import read_tensors
from ruvllm.learning.selection import Chosen
from ruvllm.learning.train import Learned, Prepared
from ruvllm.router.durable import replace_file
from ruvllm.router.fastgrnn import Cell, RouterNetwork

_META = "ruvllm"
SECTIONS = ("router", "loss", "training", "selection", "ewc")  # of params.yaml; the stage train lists the same


def purpose_of(prepared: Prepared, config: Config) -> str:
    """sha256 over what decides a fit: data, start and the settings that the stage train reads (dvc.yaml)."""
    state = hashlib.sha256(prepared.material.snapshot.digest.encode())
    settings = config.as_dict()
    state.update(json.dumps({name: settings[name] for name in SECTIONS}, sort_keys=True).encode())
    state.update(prepared.ewc.to_bytes() if prepared.ewc else b"no anchor")
    return state.hexdigest()


def save_learned(learned: Learned, purpose: str, path: Path) -> None:
    """Write it, with the purpose that a reader has to ask for.

    Raises:
        LearningError: the disk is full, or the place cannot be written.
    """
    arrays = {name: np.array(value.numpy(), order="C") for name, value in learned.network.state_dict().items()}
    about = json.dumps({"chosen": asdict(learned.chosen), "purpose": purpose}, sort_keys=True)
    try:
        replace_file(path, save(arrays, metadata={_META: about}))
    except OSError as error:
        raise LearningError(f"{path}: not written ({error.strerror or error}); free some space") from error


def load_learned(path: Path, purpose: str, config: Config) -> Learned:
    """What `save_learned` wrote.

    Raises:
        LearningError: the file is missing, altered, or of another purpose.
    """
    router = config.router
    cell = Cell(router.variant, router.hidden, router.rank, router.reset_gate)
    network = RouterNetwork(cell, decides=router.decides)
    try:
        arrays, about = read_tensors(path)
        network.load_state_dict({name: torch.as_tensor(values) for name, values in arrays.items()})
        chosen = about["chosen"]
        found = Chosen(**{**chosen, "fixed": tuple(chosen["fixed"]), "selective": Selective(**chosen["selective"])})
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise LearningError(f"{path}: missing or altered ({error}); run the stage train again") from error
    if about["purpose"] != purpose:
        raise LearningError(f"{path}: trained on other data or settings; run the stage train again")
    return Learned(network, found)
