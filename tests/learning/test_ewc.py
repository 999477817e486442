"""EWC against closed forms, its file, and that it changes what is learned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ruvllm.errors import LearningError
from ruvllm.learning import consolidate
from ruvllm.learning.checkpoint import FILE, load_checkpoint
from ruvllm.learning.data import load_snapshot
from ruvllm.learning.ewc import Ewc, Origin, consolidate_bundle, load_ewc, save_ewc
from ruvllm.learning.fake import fake_arrays, second_night, write_fake_snapshot
from ruvllm.learning.fisher import measure_bundle
from ruvllm.learning.train import train
from ruvllm.router.layout import LAYOUT

ORIGIN = Origin("1", "packaged", ("a", "b", "", ""), "test-encoder", LAYOUT.hash, "spec")


def state(fisher, anchor, **more):
    arrays = [{"w": np.array(values, dtype=np.float32)} for values in (fisher, anchor)]
    return Ewc(*arrays, **{"penalty": 4.0, "decay": 0.5, "origin": ORIGIN, **more})


def test_the_penalty_is_the_quadratic_and_pulls_to_the_anchor():
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = state([3.0, 0.5], [0.0, 4.0]).loss({"w": theta})
    assert float(loss.detach()) == pytest.approx(4.0 / 2 * (3.0 * 1.0 + 0.5 * 4.0))
    loss.backward()
    assert theta.grad.tolist() == pytest.approx([4.0 * 3.0 * 1.0, 4.0 * 0.5 * -2.0])


def test_the_minimum_lies_where_the_closed_form_says():
    ewc, theta = state([3.0], [1.0]), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([theta], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (((theta - 5.0) ** 2).sum() + ewc.loss({"w": theta})).backward()
        optimiser.step()
    assert float(theta.detach()) == pytest.approx((2 * 5.0 + 12.0 * 1.0) / (2 + 12.0), abs=1e-4)


def test_consolidation_decays_what_was_and_moves_the_anchor():
    merged = state([2.0], [0.0]).consolidated({"w": np.array([1.0])}, {"w": np.array([7.0])}, 5, ORIGIN)
    assert (merged.fisher["w"].tolist(), merged.anchor["w"].tolist(), merged.samples) == ([2.0], [7.0], 5)


def test_other_shapes_are_refused_by_name():
    with pytest.raises(LearningError, match=r"w is \(3,\), want \(2,\)"):
        state([1.0, 1.0], [0.0, 0.0]).loss({"w": torch.zeros(3)})
    with pytest.raises(LearningError, match="v is"):
        state([1.0], [0.0]).loss({"v": torch.zeros(1)})
    with pytest.raises(LearningError, match="negative"):
        state([-1.0], [0.0])


def test_a_state_is_read_as_it_was_saved_and_an_altered_one_refused(tmp_path: Path):
    path = tmp_path / "ewc.safetensors"
    saved = state([1.0, 2.0], [3.0, 4.0], samples=9, buffers={"feature_mean": np.ones(2, dtype=np.float32)})
    save_ewc(saved, path)
    read = load_ewc(path)
    assert read.fisher["w"].tolist() == [1.0, 2.0]
    assert read.buffers["feature_mean"].tolist() == [1.0, 1.0]
    assert (read.origin, read.penalty, read.decay, read.samples) == (ORIGIN, 4.0, 0.5, 9)
    assert saved.to_bytes() == read.to_bytes()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(LearningError, match="consolidate the champion again"):
        load_ewc(path)


def test_fisher_of_the_head_biases_is_the_variance_of_the_models_own_labels(first_night: Path):
    measured = measure_bundle(first_night / "bundle", first_night / "snapshot.npz")
    network = load_checkpoint(first_night / "bundle").network
    snapshot = load_snapshot(first_night / "snapshot.npz")
    from ruvllm.learning.data import features_for
    from ruvllm.learning.fit import Material, Normaliser, forward, make_batch, set_buffers
    from ruvllm.learning.targets import make_targets

    scaling = Normaliser(*(measured.buffers[n] for n in ("feature_mean", "feature_scale", "feature_mask")))
    transforms = load_checkpoint(first_night / "bundle").bundle.transforms
    material = Material(snapshot, make_targets(snapshot), features_for(snapshot, transforms), scaling)
    set_buffers(network, material)
    with torch.no_grad():
        outputs = forward(network, make_batch(material, snapshot.train))
    for head, logits in (("model", outputs.model), ("context", outputs.context)):
        p = logits.softmax(dim=1).numpy()
        np.testing.assert_allclose(measured.fisher[f"heads.{head}.bias"], (p * (1 - p)).mean(axis=0), atol=1e-5)
    present = np.array([bool(tier) for tier in measured.origin.tiers])
    p = outputs.quality.sigmoid().numpy()
    wanted = np.where(present, (p * (1 - p)).mean(axis=0), 0.0)  # nothing is known, so nothing kept, of absent tiers
    np.testing.assert_allclose(measured.fisher["heads.quality.bias"], wanted, atol=1e-5)
    assert set(measured.fisher) == {name for name, _ in network.named_parameters()}
    assert measured.samples == 30


def test_a_second_night_starts_from_the_anchor_and_without_ewc_ends_elsewhere(first_night: Path, quick, tmp_path: Path):
    arrays = second_night(fake_arrays(30, 12), fake_arrays(15, 6, seed=5))
    snapshot = write_fake_snapshot(tmp_path / "s.npz", arrays)
    ewc = measure_bundle(first_night / "bundle", first_night / "snapshot.npz")

    def distance(penalty):
        trained = train(snapshot, quick, replace(ewc, penalty=penalty) if penalty is not None else None)
        here = dict(trained.network.named_parameters())
        return sum(float(((here[n].detach() - torch.as_tensor(a)) ** 2).sum()) for n, a in ewc.anchor.items())

    without, weak, strong = distance(None), distance(0.0), distance(1e4)
    # a fresh start has the first night's seed and so the same first weights: how far it ends from there is chance
    assert strong < 0.9 * min(weak, without)
    assert weak != without


def test_a_state_of_another_ladder_is_left_out_and_the_report_says_so(first_night: Path, quick):
    ewc = measure_bundle(first_night / "bundle", first_night / "snapshot.npz")
    other = replace(ewc, origin=replace(ewc.origin, ladder="lfm2", encoder_id="lfm2-350m"))
    trained = train(load_snapshot(first_night / "snapshot.npz"), quick, other)
    assert not trained.anchored
    assert any("differs in ladder, encoder_id" in warning for warning in trained.warnings)


def test_consolidating_twice_keeps_the_shape_and_the_row_fits_the_table(first_night: Path, tmp_path: Path):
    first = consolidate_bundle(first_night / "bundle", first_night / "snapshot.npz")
    consolidate.main([
        "--bundle", str(first_night / "bundle"), "--snapshot", str(first_night / "snapshot.npz"),
        "--out", str(tmp_path / "ewc.safetensors"),
    ])  # fmt: skip
    assert (tmp_path / "ewc.safetensors").read_bytes() == first.state
    second = consolidate_bundle(first_night / "bundle", first_night / "snapshot.npz", tmp_path / "ewc.safetensors")
    assert set(first.row()) == {"state", "sha256", "samples", "penalty", "decay", "layout_hash"}
    (tmp_path / "two").write_bytes(second.state)
    one, two = load_ewc(tmp_path / "ewc.safetensors"), load_ewc(tmp_path / "two")
    np.testing.assert_allclose(two.fisher["heads.model.bias"], 1.9 * one.fisher["heads.model.bias"], rtol=1e-5)


def test_training_file_of_another_bundle_is_refused(first_night: Path, tmp_path: Path):
    import shutil

    shutil.copytree(first_night / "bundle", tmp_path / "bundle")
    content = bytearray((tmp_path / "bundle" / FILE).read_bytes())
    content[-400:-396] = np.float32(3.0).tobytes()  # one weight
    (tmp_path / "bundle" / FILE).write_bytes(content)
    with pytest.raises(LearningError, match=r"does not belong|missing or altered"):
        load_checkpoint(tmp_path / "bundle")
    (tmp_path / "bundle" / FILE).unlink()
    with pytest.raises(LearningError, match="missing or altered"):
        load_checkpoint(tmp_path / "bundle")


def test_fisher_is_measured_on_the_bundles_own_snapshot(first_night: Path, tmp_path: Path):
    write_fake_snapshot(tmp_path / "other.npz", fake_arrays(30, 12, seed=9))
    with pytest.raises(LearningError, match="its own cycle"):
        measure_bundle(first_night / "bundle", tmp_path / "other.npz")
