"""The three phases: what stays, what is trained again, and that the bytes serve what torch said."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ruvllm.learning.compress import fixed_support, hard_threshold, in_bytes, input_weights, network_of, sparse
from ruvllm.learning.config import CompressionConfig
from ruvllm.learning.data import load_snapshot
from ruvllm.learning.evaluate import evaluate
from ruvllm.learning.train import train
from ruvllm.router.bundle import read_bundle
from ruvllm.router.fastgrnn import Cell, RouterNetwork
from ruvllm.router.folded import line
from ruvllm.router.runtime import RouterRuntime

CELLS = [Cell("spec", 6, 3), Cell("spec", 6, 3, reset_gate=True), Cell("kusupati", 6, 3)]


def moved(cell: Cell = CELLS[0]) -> RouterNetwork:
    network = RouterNetwork(cell, seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return network


def share(network: RouterNetwork) -> list[float]:
    return [float((weight != 0).float().mean()) for weight in input_weights(network)]


def test_the_largest_weights_stay_as_they_were() -> None:
    network, before = moved(), moved()
    hard_threshold(0.25)(1, network)
    for weight, old in zip(input_weights(network), input_weights(before), strict=True):
        kept = weight != 0
        assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.01)
        assert torch.equal(weight[kept], old[kept])
        assert old[kept].abs().min() >= old[~kept].abs().max()


def test_the_support_moves_while_thresholding_and_not_afterwards() -> None:
    """What grows during the second phase comes in; in the third it does not."""
    seen: list[torch.Tensor] = []

    def go_on(network: RouterNetwork, steps: int, after_step) -> None:
        for step in range(steps):
            with torch.no_grad():
                network.wide[0, :3] += 1.0 if not seen else 0.0  # only in the second phase
                network.wide[1] += 0.5  # weights that grow in both
            after_step(step, network)
        seen.append(network.wide.detach() != 0)

    slim = sparse(RouterNetwork(Cell(hidden=4, rank=2)), go_on, CompressionConfig(kept=0.05, steps=3))
    assert seen[0][0, :3].all()  # they were 0 when it began
    assert torch.equal(seen[0], seen[1])
    assert slim.cell.linear_gates


@pytest.mark.parametrize("cell", CELLS, ids=["spec", "spec with reset", "kusupati"])
def test_the_bytes_network_says_what_the_arrays_say(cell: Cell) -> None:
    network = moved(cell)
    network.tier_shift[1], network.bin_shift[2] = 0.4, -0.3
    again = network_of(network.export_arrays(), network)
    x, h = torch.randn(5, 128), torch.randn(5, cell.hidden)
    with torch.no_grad():
        one, other = (n.read(n.step(x, h), x) for n in (network, again))
    for name in ("choice", "context", "quality", "confidence", "top_p"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)


def test_training_writes_bytes_that_serve(first_night: Path, quick) -> None:
    bundle = read_bundle(first_night / "bundle")
    assert bundle.compact is not None
    compact, full = (
        RouterRuntime.load(first_night / "bundle", compact=c) for c in (True, False)
    )  # golden vectors hold
    assert compact.cell.squash is line
    assert full.cell.squash is np.tanh
    report = evaluate(load_snapshot(first_night / "snapshot.npz"), first_night / "bundle", None, quick)
    found = report["compact"]
    assert found["n"] == 12
    assert 0 < found["bytes"] <= 8192
    assert abs(found["utility_lost"]) < 0.5
    assert found["same_decisions"] > 0.5


def test_the_trained_network_is_not_touched(first_night: Path, with_params) -> None:
    snapshot = load_snapshot(first_night / "snapshot.npz")
    settings = {"training": {"steps": 20, "folds": 2}}
    dense = train(snapshot, with_params(**settings, compression={"kept": 1.0}))
    both = train(snapshot, with_params(**settings))
    assert dense.compressed is None
    assert both.compressed is not None
    for name, value in dense.network.state_dict().items():
        assert torch.equal(value, both.network.state_dict()[name]), name
    assert max(share(both.network)) > 0.9
    kept = share(both.compressed.network)
    assert max(kept) <= 0.26
    assert min(kept) > 0.1


def test_the_support_is_held_by_name() -> None:
    network = moved()
    hard_threshold(0.1)(0, network)
    hold = fixed_support(network)
    before = [weight != 0 for weight in input_weights(network)]
    with torch.no_grad():
        for weight in input_weights(network):
            weight += 1.0
    hold(1, network)
    assert all(torch.equal(weight != 0, was) for weight, was in zip(input_weights(network), before, strict=True))
    assert np.isfinite(in_bytes(network).packed["plain"]).all()
