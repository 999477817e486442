"""The router in bytes: what it may lose, what it must not, and how small it is."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from ruvllm.errors import BundleError
from ruvllm.router.bundle import Compact, read_bundle, write_bundle
from ruvllm.router.compact import _quantise, pack, size_of, unpack
from ruvllm.router.fake import random_arrays, write_random_bundle
from ruvllm.router.folded import fold
from ruvllm.router.runtime import RouterRuntime


def trained_like(reset_gate: bool = False, kept: float = 0.25, hidden: int = 32, rank: int = 8):
    """Arrays as the three phases leave them: input weights sparse, U of low rank."""
    rng = np.random.default_rng(3)
    arrays = random_arrays(rng, hidden, reset_gate)
    for name in [name for name in arrays if name.startswith("U_")]:
        product = rng.normal(0, 0.2, (hidden, rank)) @ rng.normal(0, 0.2, (rank, hidden))
        arrays[name] = product.astype(np.float32)
    for name in [name for name in arrays if name.startswith("W_") or name == "wide"]:
        least = np.quantile(np.abs(arrays[name]), 1 - kept)
        arrays[name] = np.where(np.abs(arrays[name]) > least, arrays[name], 0).astype(np.float32)
    return arrays


@pytest.mark.parametrize("reset_gate", [False, True])
def test_bytes_say_nearly_what_the_floats_say(reset_gate: bool) -> None:
    arrays, rng = trained_like(reset_gate), np.random.default_rng(0)
    exact, rounded = fold(arrays, 1.7), fold(unpack(pack(arrays)), 1.7)
    for _ in range(20):
        x = np.concatenate([rng.uniform(0, 1, 128), rng.normal(0, 0.5, 32), [1.0]])
        np.testing.assert_allclose(rounded.step(x)[1], exact.step(x)[1], atol=0.06)


def test_a_query_of_mean_features_is_decided_as_before() -> None:
    arrays = trained_like()
    still = {**arrays, "U_z": np.zeros((32, 32), np.float32), "U_h": np.zeros((32, 32), np.float32)}
    mean = np.append(still["feature_mean"].astype(np.float64), 1.0)
    one, other = fold(still, 1.0).step(mean)[0], fold(unpack(pack(still)), 1.0).step(mean)[0]
    np.testing.assert_allclose(one, other, atol=1e-5)  # the rounding of W is nothing there: it is in the biases


def test_the_files_are_small_enough_for_an_edge_device() -> None:
    packed = pack(trained_like())
    assert size_of(packed).kept == pytest.approx(0.25, abs=0.01)
    assert len(save(dict(packed))) <= 8192
    assert len(save(dict(pack(trained_like(kept=1.0))))) > 8192  # it is the sparsity that does it


def test_gates_of_lines_are_the_formula() -> None:
    arrays = trained_like()
    x = np.random.default_rng(1).uniform(-2, 2, 128)
    scaled = (x - arrays["feature_mean"]) / arrays["feature_scale"]
    z = np.clip((arrays["W_z"] @ scaled + arrays["b_z"]) / 4 + 0.5, 0, 1)
    candidate = np.clip(arrays["W_h"] @ scaled + arrays["b_h"], -1, 1)
    wanted = (arrays["zeta"] * (1 - z) + arrays["nu"]) * candidate
    got = fold(arrays, 1.0, linear_gates=True).step(np.append(x, 1.0))[0] / 2
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_rounding_is_at_most_half_a_step(rows: list[list[float]]) -> None:
    weight = np.array(rows)
    levels, scale = _quantise(weight)
    restored = levels.astype(float) * scale.astype(float)[:, None]
    half = np.abs(weight).max(axis=1) / 127 / 2
    # a scale is rounded to 11 bits, and below 6e-8 to 0
    assert (
        np.abs(restored - weight).max(axis=1) <= half * 1.01 + 127 * 2.0**-11 * np.abs(weight).max(axis=1) / 127 + 1e-5
    ).all()


@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_damaged_bytes_are_refused(damage: str) -> None:
    packed = pack(trained_like())
    if damage == "missing":
        del packed["inputs.q"]
    elif damage == "short":
        packed["biases"] = packed["biases"][:-1]
    else:
        packed = {}
    with pytest.raises(BundleError, match=r"compact router: damaged .*compress it again"):
        unpack(packed)


def test_a_bundle_serves_its_bytes_when_asked(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "plain")
    plain = read_bundle(tmp_path / "plain")
    with pytest.raises(BundleError, match=r"has no weights in bytes.*compression\.kept"):
        RouterRuntime.load(tmp_path / "plain", compact=True)
    packed = pack(plain.arrays)
    wrong = Compact(packed, plain.golden)  # golden vectors of the floats are not those of the bytes
    write_bundle(tmp_path / "wrong", plain.arrays, plain.manifest, golden=plain.golden, compact=wrong)
    assert set(read_bundle(tmp_path / "wrong").manifest.files) >= {"compact.safetensors", "compactgolden.safetensors"}
    with pytest.raises(BundleError, match="golden vector 0"):
        RouterRuntime.load(tmp_path / "wrong", compact=True)
    RouterRuntime.load(tmp_path / "wrong")  # the floats are sound
    write_random_bundle(tmp_path / "big", hidden=64)
    big = read_bundle(tmp_path / "big")
    with pytest.raises(BundleError, match="hidden size 32, want 64"):
        write_bundle(tmp_path / "mixed", big.arrays, big.manifest, golden=big.golden, compact=wrong)
