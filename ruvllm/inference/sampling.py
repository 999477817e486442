"""Which token comes next, and which sampling a request may ask for; knows nothing of llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InferenceError, InputError
from ruvllm.inference.types import Sampling

MAX_STOPS, MAX_STOP_CHARS = 16, 64


def check_sampling(sampling: Sampling) -> Sampling:
    """The same sampling, if it is one that can be carried out.

    Raises:
        InputError: a value is NaN or out of range; llama.cpp itself would accept it silently.
    """
    _number("temperature", sampling.temperature, 0.0, 2.0)
    _number("top_p", sampling.top_p, 0.0, 1.0)
    _integer("max_tokens", sampling.max_tokens, 1, 1024)
    _integer("seed", sampling.seed, 0, 2**63 - 1)
    if len(sampling.stop) > MAX_STOPS:
        raise InputError(f"stop: got {len(sampling.stop)} strings, want at most {MAX_STOPS}")
    for stop in sampling.stop:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InputError(f"stop: got a string of {len(stop)} characters, want 1 to {MAX_STOP_CHARS}")
    return sampling


def _number(name: str, got: float, low: float, high: float) -> None:
    if not (math.isfinite(got) and low <= got <= high):
        raise InputError(f"{name}: got {got}, want a number from {low} to {high}")


def _integer(name: str, got: int, low: int, high: int) -> None:
    if isinstance(got, bool) or not isinstance(got, int) or not low <= got <= high:
        raise InputError(f"{name}: got {got!r}, want a whole number from {low} to {high}")


def pick(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """A token id from `logits` (V,): the best at temperature 0, else drawn from the smallest set that holds top_p.

    Raises:
        InferenceError: the model's logits are no numbers.
    """
    if sampling.temperature == 0.0 or sampling.top_p == 0.0:
        return _best(logits)
    probs = probabilities(logits, sampling.temperature)
    nucleus = _nucleus(probs, sampling.top_p)
    return int(rng.choice(nucleus, p=probs[nucleus] / probs[nucleus].sum()))


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """Natural logarithm of the softmax of `logits` (V,) at `token`."""
    top = logits.max()
    return float(logits[token] - top - np.log(np.exp(logits - top).sum(dtype=np.float64)))


def certainty(log_probabilities: Sequence[float]) -> float:
    """Geometric mean of the tokens' probabilities, from their natural logarithms.

    Raises:
        InputError: there is no token, or a value is not a logarithm of a probability.
    """
    if not len(log_probabilities):
        raise InputError("certainty: no token, want the log-probability of at least one")
    total = math.fsum(log_probabilities)
    if math.isnan(total) or max(log_probabilities) > 1e-6:
        raise InputError("certainty: a log-probability is over 0 or not a number")
    return math.exp(min(0.0, total / len(log_probabilities)))


def probabilities(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """(V,) softmax over the whole vocabulary.

    Raises:
        InferenceError: the model's logits are no numbers.
    """
    scaled = logits.astype(np.float64) / temperature  # (V,)
    weights = np.exp(scaled - scaled[_best(logits)])
    probs: NDArray[np.float64] = weights / weights.sum()
    return probs


def _best(logits: NDArray[np.float32]) -> int:
    """argmax takes a NaN for the greatest, so looking at the best finds any NaN among them all."""
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):
        raise InferenceError(f"model: got {logits[best]} as its best logit, want a number; its weights are damaged")
    return best


def _nucleus(probs: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Ids of the smallest set of best tokens whose probability reaches `top_p`."""
    if top_p >= 1.0:
        return np.arange(len(probs))
    # Tokens below (1 - top_p) / V sum to less than 1 - top_p, so the set never reaches them: only the rest is sorted.
    likely = np.flatnonzero(probs >= (1.0 - top_p) / len(probs))
    order = likely[np.argsort(-probs[likely], kind="stable")]  # best first
    return order[: int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1]
