"""The shape of an attention model, and the constants of its formulas. Knows nothing of torch, numpy or training.

Both implementations, `layers` (torch, for training) and `runtime` (numpy, for serving), compute this:

    x_i  = W_f (f_i - mean) / scale + W_p p_i + b_x                      f node features, p = question * node vector
    per layer and head, a message j -> i with edge features u_ji = [relation embedding (16), (edge features - m) / s]:
    q_i  = R_i W_q h_i,  k_j = R_j W_k h_j                               R: rotation by hop and by time (GraphRoPE)
    e    = q_i . k_j / sqrt(w)                                           Euclidean score, w the head's width
    p    = - exp(beta) d(exp_0(q_i), exp_0(k_j))                         Poincaré-ball score
    a_ji = softmax over j of ((1 - g) e + g p + W_u u_ji - softplus(delta) hop_j)
    h_i' = LayerNorm(h_i + W_o [sum_j a_ji (W_v h_j + W_e u_ji)])
    score_i = softplus(rho) prior_i + w_f . f_i + w_h . h_i

Edge features and attention after Veličković et al. 2018 (GAT, equations 1-6) with scaled products (Vaswani et al. 2017,
equation 1); rotation after Su et al. 2021 (RoFormer, equation 15); ball after Nickel & Kiela 2017 (equation 1) and
Ganea et al. 2018 (lemma 2, the exponential map at 0). The gate g is learned per head; hop decay is
exp(-softplus(delta) hop).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ruvllm.attention.graph import N_CODES, N_EDGE, N_NODE
from ruvllm.errors import ArtifactError

N_RELATION = 16  # dimensions of a relation's embedding
# Norm that no point of the ball exceeds. A rounding of 1e-7 moves a distance by sinh(2 artanh BALL) times that: 1e-5
# here, 1e-4 at 0.999, and there numpy and torch would no longer agree.
BALL = 0.99
NORM_EPSILON = 1e-5  # of layer norm
SMALL = 1e-7  # under roots
# Rotation frequencies of a head's pairs of dimensions: the first half turns with hops, the second with log1p(days).
HOP_TURN, TIME_TURN = 1.0, 0.5
TURN_BASE = 4.0  # each further pair turns so much slower
_MOST = {"width": 256, "heads": 16, "layers": 4, "embedding": 8192}


@dataclass(frozen=True)
class Shape:
    """Sizes and switches. `embedding` is the dimension of node vectors."""

    embedding: int
    width: int = 32
    heads: int = 4
    layers: int = 2
    hyperbolic: bool = False
    rope: bool = True
    recency: bool = True  # False: age and recency of edges are not looked at
    vectors: bool = True  # False: node vectors are not looked at

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ArtifactError(f"attention shape: {name} is {getattr(self, name)}, want 1 to {most}")
        if self.width % (4 * self.heads):
            raise ArtifactError(f"attention shape: width {self.width} is no multiple of 4 times {self.heads} heads")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def turns(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Frequencies of a head's width / 4 hop pairs and of its width / 4 time pairs."""
        pairs = range(self.head_width // 4)
        return tuple(HOP_TURN / TURN_BASE**i for i in pairs), tuple(TIME_TURN / TURN_BASE**i for i in pairs)

    def arrays(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of every array of a model."""
        edge = N_RELATION + N_EDGE
        one: dict[str, tuple[int, ...]] = {
            "node_mean": (N_NODE,), "node_scale": (N_NODE,), "edge_mean": (N_EDGE,), "edge_scale": (N_EDGE,),
            "features.w": (self.width, N_NODE), "features.b": (self.width,), "product.w": (self.width, self.embedding),
            "relations": (N_CODES, N_RELATION), "prior": (), "skip": (N_NODE,), "head": (self.width,),
        }  # fmt: skip
        for layer in range(self.layers):
            one |= {f"{layer}.{name}.w": (self.width, self.width) for name in ("query", "key", "value", "out")}
            one |= {f"{layer}.edge_value.w": (self.width, edge), f"{layer}.edge_score.w": (self.heads, edge)}
            one |= {f"{layer}.{name}": (self.heads,) for name in ("gate", "beta", "decay")}
            one |= {f"{layer}.norm.w": (self.width,), f"{layer}.norm.b": (self.width,)}
        return one
