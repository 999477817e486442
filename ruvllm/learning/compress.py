"""The paper's three phases for a trained router, and its bytes. Knows nothing of snapshots, folds or files.

Kusupati et al. 2018, section 3.2: (1) learn W dense and U of low rank; (2) go on while after every step only the
largest weights of each input matrix are kept, so that the support may still move (iterative hard thresholding,
Blumensath and Davies 2009); (3) retrain on the support found, here with lines in place of sigmoid and tanh, as the
bytes will be used.
Phase 1 is the training that there was; how to go on is the caller's, who knows data and loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from ruvllm.learning.config import CompressionConfig
from ruvllm.router.bundle import Array
from ruvllm.router.compact import Packed, pack, unpack
from ruvllm.router.fastgrnn import Cell, RouterNetwork

AfterStep = Callable[[int, RouterNetwork], None]
Continue = Callable[[RouterNetwork, int, AfterStep], None]  # network, steps, what to do after each: trains in place


@dataclass(frozen=True, eq=False)
class Compressed:
    """`network` has the weights that the bytes stand for, gates of lines, and U of full rank."""

    packed: Packed
    network: RouterNetwork


def in_bytes(slim: RouterNetwork) -> Compressed:
    """What was made sparse, as bytes and as the network that they stand for."""
    packed = pack(slim.export_arrays())
    return Compressed(packed, network_of(unpack(packed), slim))


def sparse(network: RouterNetwork, go_on: Continue, config: CompressionConfig, linear: bool = True) -> RouterNetwork:
    """A copy after phases 2 and 3; `linear`: the last one with lines for gates."""
    slim = deepcopy(network)
    threshold = hard_threshold(config.kept)
    go_on(slim, config.steps, threshold)
    threshold(0, slim)
    slim.cell.linear_gates = linear
    go_on(slim, config.steps, fixed_support(slim))
    return slim


def hard_threshold(kept: float) -> AfterStep:
    """After a step: of each input matrix the largest share `kept` stays, by magnitude; at least one weight a matrix."""

    def apply(step: int, network: RouterNetwork) -> None:
        with torch.no_grad():
            for weight in input_weights(network):
                count = max(1, round(kept * weight.numel()))
                least = weight.abs().flatten().topk(count).values[-1]
                weight.masked_fill_(weight.abs() < least, 0.0)

    return apply


def fixed_support(network: RouterNetwork) -> AfterStep:
    """After a step: what is 0 in `network` now is 0 again."""
    supports = [weight.detach() != 0 for weight in input_weights(network)]

    def apply(step: int, network: RouterNetwork) -> None:
        with torch.no_grad():
            for weight, support in zip(input_weights(network), supports, strict=True):
                weight.mul_(support)

    return apply


def input_weights(network: RouterNetwork) -> Iterator[Tensor]:
    """The matrices that features go into: W of each gate and the linear path. In place."""
    for name, parameter in network.named_parameters():
        if name.startswith("cell.W") or name == "wide":
            yield parameter


def network_of(arrays: dict[str, Array], like: RouterNetwork) -> RouterNetwork:
    """Dense arrays as a network again: U = U I, masks as `like` has them; shifts that were folded in are not twice."""
    cell = like.built
    full = Cell("spec", cell.hidden, cell.hidden, "W_r" in arrays)
    network = RouterNetwork(full, decides=like.decides)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for name in ("tier_mask", "bin_mask", "exchange", "sharpness"):
        state[name] = getattr(like, name).clone()
    for name, values in arrays.items():
        state |= _place(name, torch.as_tensor(values))
    network.load_state_dict(state)
    network.cell.linear_gates = like.cell.linear_gates
    return network


def _place(name: str, values: Tensor) -> dict[str, Tensor]:
    """Where an array of router.safetensors stands in a network of full rank."""
    if name.startswith("U_"):
        gate = name.removeprefix("U_")
        return {f"cell.U1_{gate}": values, f"cell.U2_{gate}": torch.eye(len(values))}
    if name.startswith(("W_", "b_")) or name in ("zeta", "nu"):
        return {f"cell.{name}": values}
    head, dot, kind = name.partition(".")
    if dot:
        return {f"heads.{head}.{'weight' if kind == 'w' else 'bias'}": values}
    return {name: values}
