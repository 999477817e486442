"""Many queries at once are decided as each of them alone."""

from pathlib import Path

import numpy as np
import pytest

from ruvllm.errors import InputError
from ruvllm.router.batch import _SLAB, decide_batch
from ruvllm.router.decision import Allowed, Tradeoff
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import LAYOUT
from ruvllm.router.manifest import Deciding
from ruvllm.router.runtime import RouterRuntime

ALL = Allowed((True,) * 4, (True,) * 5)
SOME = Allowed((True, False, True, True), (False, True, True, True, False))


def router(folder: Path, **given: object) -> RouterRuntime:
    write_random_bundle(folder / "bundle", tiers=("a", "b", "c", ""), **given)  # type: ignore[arg-type]
    return RouterRuntime.load(folder / "bundle")


def queries(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.uniform(LAYOUT.low, LAYOUT.high, (n, 128)).astype(np.float32)
    hidden = rng.normal(0, 0.5, (n, 32)).astype(np.float32)
    return features, hidden


@pytest.mark.parametrize("allowed", [ALL, SOME], ids=["all", "some"])
@pytest.mark.parametrize("head", ["quality", "model"])
@pytest.mark.parametrize("reset_gate", [False, True])
@pytest.mark.parametrize("carried", [False, True])
def test_each_row_is_decided_as_alone(
    tmp_path: Path, allowed: Allowed, head: str, reset_gate: bool, carried: bool
) -> None:
    runtime = router(tmp_path, reset_gate=reset_gate, deciding=Deciding(head, 0.2, 0.3, 0.5))
    features, hidden = queries(60)
    got = decide_batch(runtime, features, allowed, hidden if carried else None)
    for row in range(60):
        one = runtime.decide(features[row], hidden[row] if carried else None, allowed)
        assert got.tier[row] == one.model_probs.argmax()
        assert got.bin[row] == one.context_probs.argmax()
        assert got.confidence[row] == pytest.approx(one.confidence, abs=1e-4)
        np.testing.assert_allclose(got.quality[row], one.quality, atol=1e-4)
        np.testing.assert_allclose(got.hidden[row], one.hidden, atol=1e-4)


def test_slabs_join_in_order_and_the_trade_off_moves(tmp_path: Path) -> None:
    runtime = router(tmp_path)
    features, _ = queries(2 * _SLAB + 3)
    whole = decide_batch(runtime, features, ALL)
    assert len(whole.tier) == len(features)
    last = decide_batch(runtime, features[-3:], ALL)
    assert whole.tier[-3:].tolist() == last.tier.tolist()
    np.testing.assert_allclose(whole.hidden[-3:], last.hidden, atol=1e-5)
    dear = decide_batch(runtime, features, ALL, tradeoff=Tradeoff(0.0, 1e6))
    assert (dear.tier == runtime.cost[:3, dear.bin].argmin(axis=0)).all()


@pytest.mark.parametrize(
    ("features", "hidden", "allowed", "message"),
    [
        (np.zeros((3, 127), np.float32), None, ALL, r"want float32 \(n, 128\)"),
        (np.zeros((3, 128)), None, ALL, "float64"),
        (np.full((3, 128), np.nan, np.float32), None, ALL, "features: a value is not finite"),
        (np.zeros((3, 128), np.float32), np.zeros((2, 32), np.float32), ALL, r"want float32 \(3, 32\)"),
        (np.zeros((3, 128), np.float32), np.full((3, 32), np.inf, np.float32), ALL, "hidden states: a value"),
        (np.zeros((0, 128), np.float32), None, ALL, "no row"),
        (np.zeros((3, 128), np.float32), None, Allowed((False,) * 4, (True,) * 5), "no tier or no context bin"),
    ],
)
def test_unacceptable_input_is_named(tmp_path: Path, features, hidden, allowed: Allowed, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decide_batch(router(tmp_path), features, allowed, hidden)
