"""The cell and heads against the equations written out in numpy, and the export against both."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ruvllm.errors import LearningError
from ruvllm.learning.config import load_config, parse_config
from ruvllm.learning.data import features_for
from ruvllm.learning.fake import fake_arrays, write_fake_snapshot
from ruvllm.learning.fit import Material, make_batch, make_normaliser, new_network, total_loss
from ruvllm.learning.loss import make_lessons
from ruvllm.learning.targets import make_targets
from ruvllm.router.bundle import router_shapes
from ruvllm.router.fastgrnn import Cell, RouterNetwork
from ruvllm.settings import PROJECT_ROOT

CELLS = [Cell("spec", 6, 3), Cell("spec", 6, 3, reset_gate=True), Cell("kusupati", 6, 3)]
names = pytest.mark.parametrize("cell", CELLS, ids=["spec", "spec with reset", "kusupati"])


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def moved(cell):
    """A network whose every parameter is away from its start, in double precision."""
    network = RouterNetwork(cell, seed=1).double()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return network


def spec_step(p, x, h):
    def inner(gate, state):
        return p[f"W_{gate}"] @ x + p[f"U1_{gate}"] @ p[f"U2_{gate}"] @ state + p[f"b_{gate}"]

    z = sigmoid(inner("z", h))
    r = sigmoid(inner("r", h)) if "W_r" in p else np.ones_like(h)
    candidate = np.tanh(inner("h", r * h))
    return (p["zeta"] * (1 - z) + p["nu"]) * candidate + z * h


def kusupati_step(p, x, h):
    shared = p["W"] @ x + p["U1"] @ p["U2"] @ h
    z = sigmoid(shared + p["b_z"])
    candidate = np.tanh(shared + p["b_h"])
    return (sigmoid(p["zeta"]) * (1 - z) + sigmoid(p["nu"])) * candidate + z * h


@names
def test_three_turns_follow_the_equations(cell):
    network = moved(cell)
    p = {name: value.detach().numpy() for name, value in network.cell.named_parameters()}
    x = np.random.default_rng(0).normal(size=(3, 128))
    step, h, wanted = {"spec": spec_step, "kusupati": kusupati_step}[cell.variant], np.zeros(6), []
    for turn in x:
        h = step(p, turn, h)
        wanted.append(h)
    got = network.unroll(torch.as_tensor(x)[None])[0].detach().numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-12)


@names
def test_exported_arrays_are_the_dense_equation_of_the_runtime(cell):
    network = moved(cell)
    rng = np.random.default_rng(3)
    with torch.no_grad():
        network.feature_mean.copy_(torch.as_tensor(rng.normal(size=128)))
        network.feature_scale.copy_(torch.as_tensor(rng.uniform(0.5, 2, size=128)))
        network.feature_mask[5] = 0
        network.tier_shift[1], network.bin_shift[2] = 0.7, -0.4
        network.latency_s.copy_(torch.as_tensor(rng.uniform(size=(4, 5))))
        network.exchange.copy_(torch.tensor([0.3, 0.2]))
        network.confidence_shift.fill_(0.2)
    a = network.export_arrays()
    assert {name: array.shape for name, array in a.items()} == router_shapes(6, cell.reset_gate)
    assert all(array.dtype == np.float32 for array in a.values())
    features, h = rng.normal(size=128), rng.normal(size=6)
    x = (features - a["feature_mean"]) / a["feature_scale"]
    z = sigmoid(a["W_z"] @ x + a["U_z"] @ h + a["b_z"])
    r = sigmoid(a["W_r"] @ x + a["U_r"] @ h + a["b_r"]) if cell.reset_gate else 1.0
    following = (a["zeta"] * (1 - z) + a["nu"]) * np.tanh(a["W_h"] @ x + a["U_h"] @ (r * h) + a["b_h"]) + z * h
    with torch.no_grad():
        inputs = network.normalise(torch.as_tensor(features)[None])
        state = network.step(inputs, torch.as_tensor(h)[None])
        outputs = network.read(state, inputs)
    np.testing.assert_allclose(state[0].numpy(), following, atol=1e-5)
    wide = dict(zip(("model", "context", "quality", "confidence"), np.split(a["wide"] @ x, [4, 9, 13]), strict=True))
    for head, straight in wide.items():
        logits = a[f"{head}.w"] @ following + straight + a[f"{head}.b"]
        np.testing.assert_allclose(np.ravel(getattr(outputs, head)), logits, atol=1e-5)
    place = int(outputs.context.argmax())
    quality = sigmoid(a["quality.w"] @ following + wide["quality"] + a["quality.b"])
    utility = 1 + 4 * quality - 0.3 * a["latency_s"][:, place] - 0.2 * a["cost"][:, place]
    np.testing.assert_allclose(outputs.utility[0].numpy(), utility, atol=1e-5)
    np.testing.assert_allclose(outputs.choice[0].numpy(), utility + a["tier_shift"], atol=1e-5)
    top_p = sigmoid(a["top_p.w"] @ following + a["top_p.b"])
    np.testing.assert_allclose(outputs.top_p.numpy(), top_p, atol=1e-5)
    temperature = 2 * sigmoid(a["temperature.w"] @ following + a["temperature.b"])
    np.testing.assert_allclose(outputs.temperature.numpy(), temperature, atol=1e-5)


def test_kusupati_starts_its_scalars_before_the_sigmoid():
    arrays = RouterNetwork(Cell("kusupati")).export_arrays()
    assert float(arrays["zeta"]) == pytest.approx(0.7311, abs=1e-4)
    assert float(arrays["nu"]) == pytest.approx(0.0180, abs=1e-4)


@names
def test_every_parameter_receives_gradient_from_sessions(cell, tmp_path: Path):
    snapshot = write_fake_snapshot(tmp_path / "s.npz", fake_arrays(24, 6, session_share=1.0))
    document = load_config(PROJECT_ROOT / "params.yaml").as_dict()
    document["router"] |= {
        "variant": cell.variant, "hidden": cell.hidden, "rank": cell.rank, "reset_gate": cell.reset_gate
    }  # fmt: skip
    config, targets, features = parse_config(document), make_targets(snapshot), features_for(snapshot, None)
    material = Material(snapshot, targets, features, make_normaliser(features[snapshot.train], config.features))
    network, batch = new_network(material, snapshot.train, config, 0), make_batch(material, snapshot.train)
    assert batch.x.shape[1] > 1
    total_loss(network, batch, make_lessons(targets, batch.rows, 0.1), config).backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_a_reset_gate_is_the_specifications_only():
    document = load_config(PROJECT_ROOT / "params.yaml").as_dict()
    document["router"] |= {"variant": "kusupati", "reset_gate": True}
    with pytest.raises(LearningError, match="reset_gate"):
        parse_config(document)
