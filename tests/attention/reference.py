"""The formulas of ruvllm/attention/shape.py once more: loops over nodes, messages, heads and dimensions, in float64.

Slow on purpose, and written from the formulas, not from the code: what both implementations are held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ruvllm.attention.graph import Subgraph
from ruvllm.attention.shape import Shape

BALL, EPSILON, SMALL = 0.99, 1e-5, 1e-7


def scores(shape: Shape, arrays: Mapping[str, np.ndarray], graph: Subgraph) -> list[float]:
    a = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    nodes = [
        [(f - m) / s for f, m, s in zip(row, a["node_mean"], a["node_scale"], strict=True)]
        for row in graph.nodes.astype(float).tolist()
    ]
    hidden = []
    for i, row in enumerate(nodes):
        x = [dot(w, row) + b for w, b in zip(a["features.w"], a["features.b"], strict=True)]
        if shape.vectors:
            x = [value + dot(w, graph.product[i]) for value, w in zip(x, a["product.w"], strict=True)]
        hidden.append(x)
    for layer in range(shape.layers):
        hidden = _layer(shape, a, f"{layer}.", graph, hidden)
    return [
        softplus(a["prior"]) * float(graph.prior[i]) + dot(a["skip"], nodes[i]) + dot(a["head"], hidden[i])
        for i in range(graph.n)
    ]


def _layer(shape: Shape, a: Mapping[str, np.ndarray], at: str, graph: Subgraph, hidden: list) -> list:
    out = []
    for i in range(graph.n):
        coming = [m for m in range(len(graph.target)) if graph.target[m] == i]
        mixed: list[float] = []
        for head in range(shape.heads):
            rows = slice(head * shape.head_width, (head + 1) * shape.head_width)
            query = turned(shape, [dot(w, hidden[i]) for w in a[f"{at}query.w"][rows]], graph.hop[i], graph.time[i])
            logits, values = [], []
            for m in coming:
                j = int(graph.source[m])
                key = turned(shape, [dot(w, hidden[j]) for w in a[f"{at}key.w"][rows]], graph.hop[j], graph.time[j])
                edge = _edge(shape, a, graph, m)
                logits.append(
                    _score(shape, a, at, head, query, key)
                    + dot(a[f"{at}edge_score.w"][head], edge)
                    - softplus(a[f"{at}decay"][head]) * float(graph.hop[j])
                )
                values.append(
                    [
                        dot(v, hidden[j]) + dot(e, edge)
                        for v, e in zip(a[f"{at}value.w"][rows], a[f"{at}edge_value.w"][rows], strict=True)
                    ]
                )
            weights = [math.exp(logit) for logit in logits]
            whole = sum(weights)
            mixed += [
                sum(w * v[d] for w, v in zip(weights, values, strict=True)) / whole for d in range(shape.head_width)
            ]
        added = [h + dot(w, mixed) for h, w in zip(hidden[i], a[f"{at}out.w"], strict=True)]
        out.append(normed(added, a[f"{at}norm.w"], a[f"{at}norm.b"]))
    return out


def _edge(shape: Shape, a: Mapping[str, np.ndarray], graph: Subgraph, m: int) -> list[float]:
    scaled = [
        (float(f) - mean) / scale
        for f, mean, scale in zip(graph.messages[m], a["edge_mean"], a["edge_scale"], strict=True)
    ]
    if not shape.recency:
        scaled[2] = scaled[3] = 0.0
    return [*a["relations"][int(graph.code[m])], *scaled]


def _score(
    shape: Shape, a: Mapping[str, np.ndarray], at: str, head: int, query: Sequence[float], key: Sequence[float]
) -> float:
    plain = dot(query, key) / math.sqrt(shape.head_width)
    if not shape.hyperbolic:
        return plain
    gate = 1 / (1 + math.exp(-a[f"{at}gate"][head]))
    apart = math.exp(a[f"{at}beta"][head]) * distance(in_ball(query), in_ball(key))
    return (1 - gate) * plain - gate * apart


def turned(shape: Shape, x: Sequence[float], hop: float, time: float) -> list[float]:
    if not shape.rope:
        return list(x)
    pairs = shape.head_width // 4
    out: list[float] = []
    for pair in range(shape.head_width // 2):
        angle = float(hop) * 1.0 / 4.0**pair if pair < pairs else float(time) * 0.5 / 4.0 ** (pair - pairs)
        even, odd = x[2 * pair], x[2 * pair + 1]
        out += [
            even * math.cos(angle) - odd * math.sin(angle),
            even * math.sin(angle) + odd * math.cos(angle),
        ]
    return out


def in_ball(x: Sequence[float]) -> list[float]:
    norm = math.sqrt(sum(v * v for v in x) + SMALL)
    return [v * min(math.tanh(norm), BALL) / norm for v in x]


def distance(x: Sequence[float], y: Sequence[float]) -> float:
    """arcosh(1 + z), by the library's arcosh where it can; the square root is held off 0 as the formulas say."""
    apart = sum((p - q) ** 2 for p, q in zip(x, y, strict=True))
    z = 2 * apart / ((1 - sum(p * p for p in x)) * (1 - sum(q * q for q in y)))
    return math.log(1 + z + math.sqrt(z * (z + 2) + SMALL))


def normed(x: Sequence[float], gain: Sequence[float], bias: Sequence[float]) -> list[float]:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / math.sqrt(variance + EPSILON) * g + b for v, g, b in zip(x, gain, bias, strict=True)]


def softplus(x: float) -> float:
    return math.log(1 + math.exp(float(x)))


def dot(x: Sequence[float], y: Sequence[float]) -> float:
    return float(sum(float(p) * float(q) for p, q in zip(x, y, strict=True)))
