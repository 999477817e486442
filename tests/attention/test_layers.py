"""Both implementations against the slow reference, gradients, invariance, the ball's boundary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvllm.attention import layers, runtime
from ruvllm.attention.graph import Subgraph
from ruvllm.attention.layers import batched
from ruvllm.attention.runtime import AttentionRuntime
from ruvllm.attention.shape import BALL, Shape
from ruvllm.errors import ArtifactError
from ruvllm.learning.attention import listwise_loss, scores_of
from tests.attention import reference
from tests.attention.made import DIMENSION, SMALL, graph, network

VARIANTS = {
    "everything": SMALL,
    "Euclidean alone": replace(SMALL, hyperbolic=False),
    "no rotation": replace(SMALL, rope=False),
    "no recency": replace(SMALL, recency=False),
    "no vectors": replace(SMALL, vectors=False),
    "one layer of four heads": Shape(DIMENSION, width=32, heads=4, layers=1),
}


@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_both_are_the_reference(shape: Shape) -> None:
    made, given_ = network(shape), graph()
    wanted = reference.scores(shape, made.arrays(), given_)
    np.testing.assert_allclose(scores_of(made, [given_])[0], wanted, atol=1e-5)
    np.testing.assert_allclose(AttentionRuntime(shape, made.arrays()).attend(given_).scores, wanted, atol=1e-5)


def test_switches_do_something() -> None:
    """A switch that nothing reads would pass the test above, for the reference obeys it too."""
    arrays, given_ = network().arrays(), graph()
    whole = AttentionRuntime(SMALL, arrays).attend(given_).scores
    for name in ("hyperbolic", "rope", "recency", "vectors"):
        other = AttentionRuntime(replace(SMALL, **{name: False}), arrays).attend(given_).scores
        assert np.abs(whole - other).max() > 1e-3, name


@given(st.integers(1, 40), st.integers(0, 120), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_numpy_is_torch(n: int, count: int, seed: int) -> None:
    """The ball's distances are ill-conditioned near its boundary (`shape.BALL`), hence the wider bound with it."""
    given_ = graph(n, count, seed)
    for shape, bound in ((replace(SMALL, hyperbolic=False), 1e-5), (SMALL, 1e-4)):
        made = network(shape, seed % 7)
        ours = AttentionRuntime(shape, made.arrays()).attend(given_).scores
        np.testing.assert_allclose(ours, scores_of(made, [given_])[0], atol=bound, rtol=bound)


def test_padding_takes_part_in_nothing() -> None:
    made = network()
    several = [graph(9, 14, 1), graph(3, 2, 2), graph(0, 0, 3), graph(17, 40, 4)]
    for together, alone in zip(scores_of(made, several), several, strict=True):
        if alone.n:
            np.testing.assert_allclose(together, scores_of(made, [alone])[0], atol=1e-6)


def test_gradient_reaches_every_parameter() -> None:
    made = network()
    several = [graph(9, 14, 1), graph(12, 30, 2)]
    loss = listwise_loss(made(batched(several)), [np.eye(9, dtype=np.float32)[3], np.eye(12, dtype=np.float32)[0]])
    loss.backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        rows = parameter.grad.abs().flatten(1).sum(1) if parameter.ndim > 1 else parameter.grad.abs()
        silent = rows == 0
        if name == "relations":  # a code that no message here has
            silent &= torch.isin(torch.arange(len(rows)), torch.cat([torch.as_tensor(g.code) for g in several]))
        assert not silent.any(), name


def test_gradient_is_the_slope() -> None:
    """Against finite differences in double precision."""
    made, given_ = network(Shape(DIMENSION, width=8, heads=1, layers=1, hyperbolic=True)).double(), graph(5, 6, 3)
    batch = batched([given_])
    wide = {k: v.double() if v.is_floating_point() else v for k, v in vars(batch).items()}
    torch.set_default_dtype(torch.float64)
    try:
        names = ["gate", "beta", "decay"]
        parameters = [dict(made.named_parameters())[f"layers.0.{name}"] for name in names]
        assert torch.autograd.gradcheck(
            lambda *_: made(layers.Batch(**wide))[:, : given_.n], parameters, eps=1e-6, atol=1e-5
        )
    finally:
        torch.set_default_dtype(torch.float32)


@given(st.permutations(range(9)))
@settings(max_examples=20, deadline=None)
def test_order_of_nodes_does_not_count(order: list[int]) -> None:
    made, given_ = AttentionRuntime(SMALL, network().arrays()), graph()
    plain, mixed = made.attend(given_), made.attend(given_.permuted(order))
    np.testing.assert_allclose(mixed.scores, plain.scores[order], atol=1e-5)
    np.testing.assert_allclose(mixed.summary, plain.summary, atol=1e-5)


def test_direction_and_relation_count() -> None:
    made, given_ = AttentionRuntime(SMALL, network().arrays()), graph()
    turned = replace(given_, code=np.where(given_.code == 0, 0, (given_.code + 5) % 12 + 1))
    assert np.abs(made.attend(given_).scores - made.attend(turned).scores).max() > 1e-3


# --- the ball ---------------------------------------------------------------------------------------------------------

FAR = st.floats(-1e6, 1e6, width=32)


@given(st.lists(FAR, min_size=4, max_size=4), st.lists(FAR, min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_distances_are_finite_however_far(x: list[float], y: list[float]) -> None:
    a, b = (runtime.in_ball(np.array(each, np.float32)) for each in (x, y))
    assert np.linalg.norm(a) <= BALL + 1e-6
    distance = float(runtime.ball_distance(a, b))
    assert 0 <= distance < 40
    assert distance == pytest.approx(float(runtime.ball_distance(b, a)), abs=1e-5)
    assert distance == pytest.approx(float(layers.ball_distance(*map(torch.as_tensor, (a, b)))), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-8, 1.0, 50.0, 1e6])
def test_gradients_stay_finite_at_zero_and_at_the_boundary(size: float) -> None:
    x = torch.tensor([size, 0.0, 0.0], requires_grad=True)
    layers.ball_distance(layers.in_ball(x), layers.in_ball(torch.tensor([size, 0.0, 0.0]))).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_distance_from_the_centre_is_the_known_one() -> None:
    """d(0, x) = 2 artanh |x| (Nickel & Kiela 2017)."""
    for radius in (0.1, 0.5, 0.9, 0.98):
        got = float(runtime.ball_distance(np.zeros(3, np.float32), np.array([radius, 0, 0], np.float32)))
        assert got == pytest.approx(2 * np.arctanh(radius), rel=1e-3)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_no_node_and_one_node() -> None:
    made = AttentionRuntime(SMALL, network().arrays())
    none = made.attend(graph(0, 0))
    assert none.scores.shape == (0,)
    assert none.entropy == 0
    assert (none.summary == 0).all()
    one = made.attend(graph(1, 0))
    assert np.isfinite(one.scores).all()
    assert (one.entropy, one.share.tolist()) == (0.0, [1.0])


def test_equal_nodes_get_equal_scores_and_keep_their_order() -> None:
    same = graph(6, 0)
    equal = replace(
        same, nodes=np.ones_like(same.nodes), product=np.zeros_like(same.product), prior=np.ones_like(same.prior),
        hop=np.zeros_like(same.hop), time=np.zeros_like(same.time), messages=np.ones_like(same.messages),
    )  # fmt: skip
    attended = AttentionRuntime(SMALL, network().arrays()).attend(equal)
    assert np.ptp(attended.scores) < 1e-6
    assert attended.order.tolist() == list(range(6))
    assert attended.entropy == pytest.approx(1.0)


def test_huge_features_overflow_nothing() -> None:
    given_ = graph(9, 14)
    huge: Subgraph = replace(given_, nodes=given_.nodes * np.float32(1e8), messages=given_.messages * np.float32(1e8))
    attended = AttentionRuntime(SMALL, network().arrays()).attend(huge)
    assert np.isfinite(attended.scores).all()
    assert 0 <= attended.entropy <= 1


@pytest.mark.parametrize("wrong", [{"width": 0}, {"width": 20}, {"heads": 99}, {"layers": 0}, {"embedding": -1}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ArtifactError, match="attention shape"):
        Shape(**{"embedding": DIMENSION, **wrong})
