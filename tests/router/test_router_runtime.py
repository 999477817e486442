"""The runtime against the specification's equations, written out in plain loops; masks, threads, wrong input."""

import math
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ruvllm.errors import BundleError, InputError
from ruvllm.router.bundle import read_bundle
from ruvllm.router.decision import Allowed, Tradeoff
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.folded import fold
from ruvllm.router.layout import LAYOUT
from ruvllm.router.manifest import Deciding
from ruvllm.router.runtime import RouterRuntime

ALL = Allowed((True,) * 4, (True,) * 5)
FOUR = ("a", "b", "c", "d")


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def matvec(matrix: np.ndarray, vector: list[float]) -> list[float]:
    return [sum(float(weight) * value for weight, value in zip(row, vector, strict=True)) for row in matrix]


def softmax(logits: list[float], allowed: tuple[bool, ...]) -> list[float]:
    weights = [math.exp(logit) if ok else 0.0 for logit, ok in zip(logits, allowed, strict=True)]
    return [weight / sum(weights) for weight in weights]


def split(rows: list[float]) -> list[list[float]]:
    """The linear path's 14 rows by head."""
    return [rows[:4], rows[4:9], rows[9:13], rows[13:]]


def equations(
    a: Mapping[str, np.ndarray],
    features: np.ndarray,
    hidden: list[float],
    allowed: Allowed,
    temperature: float,
    deciding: Deciding,
) -> dict[str, object]:
    """Specification 5.1 and 5.2, one unit at a time."""
    x = [
        (float(f) - float(m)) / float(s)
        for f, m, s in zip(features, a["feature_mean"], a["feature_scale"], strict=True)
    ]

    def gate(name: str, carried: list[float]) -> list[float]:
        rows = zip(matvec(a[f"W_{name}"], x), matvec(a[f"U_{name}"], carried), a[f"b_{name}"], strict=True)
        return [w + u + float(b) for w, u, b in rows]

    z = [sigmoid(value) for value in gate("z", hidden)]
    r = [sigmoid(value) for value in gate("r", hidden)] if "W_r" in a else [1.0] * len(z)
    candidate = [math.tanh(value) for value in gate("h", [ri * hi for ri, hi in zip(r, hidden, strict=True)])]
    zeta, nu = float(a["zeta"]), float(a["nu"])
    after = [(zeta * (1 - zi) + nu) * ci + zi * hi for zi, ci, hi in zip(z, candidate, hidden, strict=True)]

    straight = dict(zip(("model", "context", "quality", "confidence"), split(matvec(a["wide"], x)), strict=True))

    def head(name: str) -> list[float]:
        carried = zip(matvec(a[f"{name}.w"], after), a[f"{name}.b"], strict=True)
        wide = straight.get(name, [0.0])
        return [w + float(b) + s for (w, b), s in zip(carried, wide, strict=True)]

    logits = head("context")
    place = logits.index(max(logits))
    quality = [sigmoid(logit) for logit in head("quality")]
    utility = [
        1 + 4 * q - deciding.latency_weight * float(seconds) - deciding.cost_weight * float(cost)
        for q, seconds, cost in zip(quality, a["latency_s"][:, place], a["cost"][:, place], strict=True)
    ]
    by_quality = deciding.head == "quality"
    choice = [u / deciding.sharpness for u in utility] if by_quality else head("model")
    return {
        "quality": quality,
        "utility": utility,
        "model_probs": softmax([c + float(s) for c, s in zip(choice, a["tier_shift"], strict=True)], allowed.tiers),
        "context_probs": softmax(head("context"), allowed.bins),
        "temperature": 2 * sigmoid(head("temperature")[0]),
        "top_p": sigmoid(head("top_p")[0]),
        "confidence": sigmoid(head("confidence")[0] / temperature),
        "hidden": after,
    }


@pytest.mark.parametrize("head", ["quality", "model"])
@pytest.mark.parametrize("reset_gate", [False, True])
@pytest.mark.parametrize("size", [32, 64])
def test_runtime_is_the_specifications_equations(tmp_path: Path, size: int, reset_gate: bool, head: str) -> None:
    folder, deciding = tmp_path / "bundle", Deciding(head, 0.2, 0.7, 0.4)
    write_random_bundle(
        folder, tiers=FOUR, seed=size, hidden=size, reset_gate=reset_gate, temperature=1.7, deciding=deciding
    )
    arrays, runtime = read_bundle(folder).arrays, RouterRuntime.load(folder)
    rng = np.random.default_rng(size)
    for carried in (False, True, True):
        features = rng.uniform(LAYOUT.low, LAYOUT.high).astype(np.float32)
        hidden = rng.normal(0, 0.7, size).astype(np.float32) if carried else None
        got = runtime.decide(features, hidden, ALL)
        before = hidden.tolist() if hidden is not None else [0.0] * size
        want = equations(arrays, features, before, ALL, 1.7, deciding)
        for name, value in want.items():
            np.testing.assert_allclose(getattr(got, name), value, atol=1e-5, err_msg=name)


def test_masked_places_are_zero_and_the_rest_sums_to_one(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle")
    runtime = RouterRuntime.load(tmp_path / "bundle")
    features = np.full(128, 0.5, dtype=np.float32)
    got = runtime.decide(features, None, Allowed((True,) * 4, (False, True, True, False, False)))
    assert got.model_probs[2:].tolist() == [0, 0]  # the ladder has two tiers
    assert got.context_probs[[0, 3, 4]].tolist() == [0, 0, 0]
    assert got.model_probs.sum() == pytest.approx(1)
    assert got.context_probs.sum() == pytest.approx(1)
    single = runtime.decide(features, None, Allowed((False, True, False, False), (True,) * 5))
    assert single.model_probs.tolist() == [0, 1, 0, 0]


def test_extreme_weights_saturate_without_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_random_bundle(folder)
    huge = {name: array * 1e6 for name, array in read_bundle(folder).arrays.items()}
    huge["feature_scale"] = read_bundle(folder).arrays["feature_scale"]
    doubled, logits = fold(huge, 1.0).step(np.ones(161))
    assert np.isfinite(doubled).all()
    assert np.isfinite(logits).all()


def test_lambda_and_mu_move_at_decision_time(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle", tiers=FOUR)
    runtime, features = RouterRuntime.load(tmp_path / "bundle"), np.full(128, 0.5, dtype=np.float32)
    default = runtime.decide(features, None, ALL)
    own = runtime.decide(features, None, ALL, Tradeoff(0.1, 0.5))
    assert own.model_probs.tolist() == default.model_probs.tolist()
    free, dear = (runtime.decide(features, None, ALL, Tradeoff(0.0, mu)) for mu in (0.0, 1000.0))
    place = int(free.context_probs.argmax())
    assert int(free.model_probs.argmax()) == int(np.argmax(free.quality))
    assert int(dear.model_probs.argmax()) == int(runtime.cost[:, place].argmin())
    assert free.quality == dear.quality  # what it expects does not depend on what it is worth


def test_the_specifications_head_knows_one_trade_off_only(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle", deciding=Deciding("model"))
    runtime = RouterRuntime.load(tmp_path / "bundle")
    with pytest.raises(InputError, match=r"decides by its model head.*router\.decides: quality"):
        runtime.decide(np.zeros(128, dtype=np.float32), None, ALL, Tradeoff(0.1, 0.1))


@pytest.mark.parametrize(
    ("features", "hidden", "allowed", "message"),
    [
        (np.zeros(127), None, ALL, r"features: shape \(127,\), want \(128,\)"),
        (np.zeros((1, 128)), None, ALL, "features: shape"),
        (np.full(128, np.nan), None, ALL, "features: a value is not finite"),
        (np.full(128, np.inf), None, ALL, "features: a value is not finite"),
        (np.zeros(128), np.zeros(31), ALL, r"hidden state: shape \(31,\), want \(32,\)"),
        (np.zeros(128), np.full(32, np.nan), ALL, "hidden state: a value is not finite"),
        (np.zeros(128), None, Allowed((False,) * 4, (True,) * 5), "tier: none of 4"),
        (np.zeros(128), None, Allowed((False, False, True, True), (True,) * 5), "tier: none of 4"),
        (np.zeros(128), None, Allowed((True,) * 4, (False,) * 5), "context bin: none of 5"),
    ],
)
def test_unacceptable_input_is_named(
    tmp_path: Path, features: np.ndarray, hidden: np.ndarray | None, allowed: Allowed, message: str
) -> None:
    write_random_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match=message):
        RouterRuntime.load(tmp_path / "bundle").decide(features, hidden, allowed)


def test_a_router_of_another_ladder_or_encoder_is_refused(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle", dimension=8)
    runtime = RouterRuntime.load(tmp_path / "bundle")
    runtime.require("packaged", ["smollm2-135m", "gemma3-270m"], "test-encoder")
    with pytest.raises(BundleError, match="active ladder is lfm2"):
        runtime.require("lfm2", ["lfm2-350m"], "test-encoder")
    with pytest.raises(BundleError, match="active ladder is packaged"):
        runtime.require("packaged", ["smollm2-135m"], "test-encoder")
    with pytest.raises(BundleError, match="vectors of test-encoder, the encoder in use is minilm"):
        runtime.require("packaged", ["smollm2-135m", "gemma3-270m"], "minilm")
    assert (runtime.version, runtime.ladder, runtime.threshold, runtime.hidden_size) == ("test", "packaged", 0.0, 32)
    assert runtime.transforms is not None


def test_threads_do_not_disturb_one_another(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle", tiers=FOUR)
    runtime = RouterRuntime.load(tmp_path / "bundle")
    inputs = np.random.default_rng(0).uniform(0, 1, (400, 128)).astype(np.float32)
    hidden = np.full(32, 0.3, dtype=np.float32)
    alone = [runtime.decide(row, hidden, ALL).hidden for row in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda row: runtime.decide(row, hidden, ALL).hidden, inputs))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


def test_the_routers_rooms_import_no_heavy_library() -> None:
    program = (
        "import sys, ruvllm.router.policy, ruvllm.router.store, ruvllm.router.features, ruvllm.router.fake;"
        "print([name for name in ('torch', 'mlflow', 'prefect', 'llama_cpp', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
