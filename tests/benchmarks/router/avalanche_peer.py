"""avalanche-lib's EWC and replay on the tasks that test_continual.py wrote down: run by an interpreter that has it.

    PYTHONPATH=. AVALANCHE_PYTHON tests/benchmarks/router/avalanche_peer.py GIVEN.npz FOUND.npz

The network, its first weights, the loss and the optimiser are those of ruvllm/learning/outcomes/continual.py; what is
kept of earlier tasks, and how, is avalanche's: with replay a step has half its rows of the memory. It trains in epochs:
as many a task as come nearest to our updates.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

# avalanche imports torchvision, whose own operators only a matching build of torch registers; nothing here calls one
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
    _library.define(f"{_name}(Tensor a) -> Tensor")

from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.utils import DataAttribute, make_avalanche_dataset  # noqa: E402
from avalanche.benchmarks.utils.flat_data import ConstantSequence  # noqa: E402
from avalanche.training.plugins import EWCPlugin, ReplayPlugin  # noqa: E402
from avalanche.training.supervised import Naive  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from ruvllm.learning.loss import quality_loss  # noqa: E402
from ruvllm.router.fastgrnn import Cell, RouterNetwork  # noqa: E402


class Qualities(torch.nn.Module):
    """The router's quality head as a plain module."""

    def __init__(self, seed: int, tiers: int) -> None:
        super().__init__()
        self.network, self.tiers = RouterNetwork(Cell(), seed), tiers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.network.step(x, self.network.first_hidden(len(x)))
        return self.network.read(hidden, x).quality[:, : self.tiers]


def _dataset(x: Any, score: Any) -> Any:
    pairs = TensorDataset(torch.as_tensor(x), torch.as_tensor(score, dtype=torch.float32))
    label = DataAttribute(ConstantSequence(0, len(x)), "targets_task_labels", use_in_getitem=True)
    return make_avalanche_dataset(pairs, data_attributes=[label])


def _accuracy(model: Qualities, task: dict[str, Any]) -> float:
    with torch.no_grad():
        quality = torch.sigmoid(model(torch.as_tensor(task["test_x"]))).double().numpy()
    known = np.isfinite(task["test_score"])
    return float(((quality >= 0.5) == (task["test_score"] >= 0.5))[known].mean())


def _run(tasks: list[dict[str, Any]], about: Any, plugins: list[Any]) -> tuple[Any, float]:
    count, updates, batch, rate, decay = (float(value) for value in about[:5])
    fresh = int(batch) // (2 if any(isinstance(each, ReplayPlugin) for each in plugins) else 1)  # rows of the task
    torch.manual_seed(int(about[7]))
    model = Qualities(int(about[7]), tasks[0]["score"].shape[1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    strategy = Naive(
        model=model, optimizer=optimiser, criterion=lambda logits, score: quality_loss(logits, score).mean(),
        train_mb_size=fresh, plugins=plugins, evaluator=None,
    )  # fmt: skip
    stream = benchmark_from_datasets(train=[_dataset(task["x"], task["score"]) for task in tasks]).train_stream
    accuracy, began = np.full((len(tasks), len(tasks)), np.nan), time.perf_counter()
    for place, experience in enumerate(stream):
        a_pass = -(-len(tasks[place]["x"]) // fresh)
        strategy.train_epochs = max(1, round(updates / count / a_pass))
        strategy.train(experience)
        accuracy[place] = [_accuracy(model, task) for task in tasks]
    return accuracy, time.perf_counter() - began


def main() -> None:
    """Read the tasks, run both, write what came of them."""
    torch.set_num_threads(1)
    with np.load(sys.argv[1], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    about = arrays["about"]
    parts = ("x", "score", "test_x", "test_score")
    tasks = [{part: arrays[f"{place}.{part}"] for part in parts} for place in range(int(about[0]))]
    runs = {
        "EWC": [EWCPlugin(ewc_lambda=float(about[5]) / 2, mode="separate")],
        "replay": [ReplayPlugin(mem_size=int(about[6]))],
        "EWC + replay": [
            EWCPlugin(ewc_lambda=float(about[5]) / 2, mode="online", decay_factor=0.95),
            ReplayPlugin(mem_size=int(about[6])),
        ],
    }
    found: dict[str, Any] = {}
    for name, plugins in runs.items():
        found[f"accuracy.{name}"], seconds = _run(tasks, about, plugins)
        found[f"seconds.{name}"] = np.array(seconds)
        print(f"avalanche-lib, {name}: {found[f'accuracy.{name}'][-1].mean():.4f}, {seconds:.0f} s", flush=True)
    np.savez(Path(sys.argv[2]), allow_pickle=False, **found)


if __name__ == "__main__":
    main()
