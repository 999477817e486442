"""The state of a fit between two steps: saved whole, taken up again to the same bits. Knows nothing of losses or data.

One safetensors file: the network's parameters and buffers, the optimiser's moments, the generator that draws the
dropout, the step. `purpose` says what is fitted on what; a state of another purpose is left alone and begun anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from ruvllm.errors import LearningError
from ruvllm.router.durable import replace_file

_META = "ruvllm"


@dataclass(frozen=True)
class Saved:
    """Where the state lies and what it is of: digests of the data and settings, seed, rows."""

    path: Path
    purpose: str

    def save(self, step: int, network: nn.Module, optimiser: torch.optim.Optimizer, draw: torch.Generator) -> None:
        """Replace what was saved before.

        Raises:
            LearningError: the disk is full, or the place cannot be written.
        """
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        for number, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"moment.{number}.{name}": value for name, value in moments.items()}
        tensors["draw"] = draw.get_state()
        arrays = {name: np.array(value.detach().numpy(), order="C") for name, value in tensors.items()}
        about = {_META: json.dumps({"purpose": self.purpose, "step": step}, sort_keys=True)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, save(arrays, metadata=about))
        except OSError as error:
            raise LearningError(f"{self.path}: not written ({error.strerror or error}); free some space") from error

    def load(self, network: nn.Module, optimiser: torch.optim.Optimizer, draw: torch.Generator) -> int:
        """The step to go on from, all three set to it; 0 where nothing of this purpose was saved.

        Raises:
            LearningError: the file is damaged, or the network has another form.
        """
        if not self.path.exists():
            return 0
        try:
            arrays, about = self._read()
            if about["purpose"] != self.purpose:
                return 0
            network.load_state_dict(_group(arrays, "network."))
            optimiser.load_state_dict({**optimiser.state_dict(), "state": _moments(_group(arrays, "moment."))})
            draw.set_state(arrays["draw"])
            return int(about["step"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise LearningError(f"{self.path}: damaged ({error}); delete it and the fit begins anew") from error

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _read(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        with safe_open(self.path, framework="numpy") as file:
            arrays = {name: torch.as_tensor(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            return arrays, json.loads((file.metadata() or {})[_META])


def _group(arrays: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _moments(flat: dict[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """`3.exp_avg` -> {3: {"exp_avg": ...}}."""
    nested: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in flat.items():
        number, key = name.split(".", 1)
        nested.setdefault(int(number), {})[key] = value
    return nested
