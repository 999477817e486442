"""The promoted router on numpy: from features to the heads of one query. Knows nothing of torch or policies.

The tier is chosen by the bundle's deciding head: the largest expected utility 1 + 4 Q - lambda L - mu C with the
likeliest bin, lambda and mu the bundle's or the caller's; or the specification's model head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import BundleError, InputError
from ruvllm.router.bundle import Bundle, Golden, read_bundle
from ruvllm.router.compact import unpack
from ruvllm.router.decision import N_BINS, Allowed, RouterOutputs, Tradeoff
from ruvllm.router.folded import CONFIDENCE, CONTEXT, MODEL, QUALITIES, TEMPERATURE, TOP_P, fold
from ruvllm.router.layout import N_FEATURES
from ruvllm.router.manifest import QUALITY, Manifest
from ruvllm.router.transforms import Transforms

Array = NDArray[np.float32]
Weights = NDArray[np.float64]

_ALL_BINS = (True,) * N_BINS
_ONE = np.ones(1)  # what the bias is multiplied by


class RouterRuntime:
    """A loaded bundle that decides. Immutable, without shared buffers: any number of threads may use one."""

    def __init__(self, bundle: Bundle, path: Path | None = None, compact: bool = False) -> None:
        """Fold the weights, or with `compact` those in bytes, and check the golden vectors.

        Raises:
            BundleError: an output differs from the golden one by more than the tolerance, or the bundle has no weights
                in bytes.
        """
        self.manifest: Manifest = bundle.manifest
        self.path = path  # the folder that it was loaded from
        self.sha256: str = bundle.sha256
        self.transforms: Transforms | None = bundle.transforms
        self.has_compact = bundle.compact is not None
        self._present = tuple(bool(name) for name in self.tiers)
        arrays, golden = _in_bytes(bundle) if compact else (bundle.arrays, bundle.golden)
        self.cell = fold(arrays, bundle.manifest.calibration.temperature, linear_gates=compact)
        self.latency_s, self.cost, self.tier_shift = (arrays[name] for name in ("latency_s", "cost", "tier_shift"))
        self._shift: list[float] = self.tier_shift.tolist()
        self._level = self.levels(None).T.tolist()  # [bin][tier]
        self._check_golden(golden)

    @classmethod
    def load(cls, folder: Path, sha256: str | None = None, compact: bool = False) -> RouterRuntime:
        """Read, verify and fold the bundle in `folder`.

        Raises:
            BundleError: a file is missing, altered or of another layout, or the golden vectors do not come out.
        """
        return cls(read_bundle(folder, sha256), folder, compact)

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def ladder(self) -> str:
        return self.manifest.ladder

    @property
    def tiers(self) -> tuple[str, ...]:
        """4 names, smallest tier first, '' where the ladder has none."""
        return self.manifest.tiers

    @property
    def threshold(self) -> float:
        """Confidence below which the fallback policy acts."""
        return self.manifest.calibration.threshold

    @property
    def encoder_id(self) -> str:
        return self.manifest.encoder_id

    @property
    def hidden_size(self) -> int:
        return self.manifest.hidden

    def require(self, ladder: str, tiers: Sequence[str], encoder_id: str) -> None:
        """Do nothing if the bundle was trained for this ladder and encoder.

        Raises:
            BundleError: it was trained for another.
        """
        trained = tuple(name for name in self.tiers if name)
        if (self.ladder, trained) != (ladder, tuple(tiers)):
            raise BundleError(
                f"router {self.version}: trained for ladder {self.ladder} ({', '.join(trained)}),"
                f" the active ladder is {ladder} ({', '.join(tiers)}); run a cycle on this ladder"
            )
        if self.encoder_id != encoder_id:
            raise BundleError(
                f"router {self.version}: trained on vectors of {self.encoder_id}, the encoder in use is {encoder_id};"
                " run a cycle with this encoder"
            )

    def levels(self, tradeoff: Tradeoff | None) -> Weights:
        """(4, 5): expected utility of a tier with a bin, were its quality 0: 1 - lambda L - mu C.

        Raises:
            InputError: a trade-off is given and the specification's head decides, which was trained for one.
        """
        deciding = self.manifest.deciding
        if tradeoff is None:
            tradeoff = Tradeoff(deciding.latency_weight, deciding.cost_weight)
        elif deciding.head != QUALITY:
            raise InputError(
                f"trade-off: router {self.version} decides by its {deciding.head} head, which knows only the one it was"
                " trained for; train with router.decides: quality"
            )
        expense = tradeoff.latency_weight * self.latency_s + tradeoff.cost_weight * self.cost
        return np.asarray(1.0 - expense, dtype=np.float64)

    def decide(
        self, features: Array, hidden: Array | None, allowed: Allowed, tradeoff: Tradeoff | None = None
    ) -> RouterOutputs:
        """Heads for one query: features (128,), hidden (H,) or None on a session's first turn.

        `tradeoff` stands for the bundle's lambda and mu; the confidence is still that of the bundle's.

        Raises:
            InputError: a shape is wrong, a value is not finite, no place is allowed, or the router cannot trade.
        """
        doubled, outputs = self.cell.step(_joined(features, hidden, self.hidden_size))
        logits: list[float] = outputs.tolist()
        bins = _shares("context bin", logits[CONTEXT], allowed.bins)
        level = self._level if tradeoff is None else self.levels(tradeoff).T.tolist()
        quality = tuple([_sigmoid(logit) for logit in logits[QUALITIES]])
        utility = tuple([base + 4.0 * q for base, q in zip(level[bins.index(max(bins))], quality, strict=True)])
        tiers = _shares(
            "tier", self._choice(logits, utility), [a and b for a, b in zip(allowed.tiers, self._present, strict=True)]
        )
        return RouterOutputs(
            model_probs=np.array(tiers, dtype=np.float32),
            context_probs=np.array(bins, dtype=np.float32),
            temperature=2.0 * _sigmoid(logits[TEMPERATURE]),
            top_p=_sigmoid(logits[TOP_P]),
            confidence=_sigmoid(logits[CONFIDENCE]),
            hidden=(doubled * 0.5).astype(np.float32),
            quality=quality,
            utility=utility,
        )

    def _choice(self, logits: list[float], utility: Sequence[float]) -> list[float]:
        """Logits (4,) of the head that decides."""
        deciding = self.manifest.deciding
        if deciding.head == QUALITY:
            sharp = 1.0 / deciding.sharpness
            return [u * sharp + shift for u, shift in zip(utility, self._shift, strict=True)]
        return [logit + shift for logit, shift in zip(logits[MODEL], self._shift, strict=True)]

    def _check_golden(self, golden: Golden) -> None:
        allowed = Allowed(self._present, _ALL_BINS)
        for row in range(len(golden.features)):
            hidden = golden.hidden[row]
            got = self.decide(golden.features[row], hidden if hidden.any() else None, allowed)
            for name, want in _expected(golden, row).items():
                error = float(np.abs(np.asarray(getattr(got, name), dtype=np.float64) - want).max())
                if error > self.manifest.tolerance:
                    raise BundleError(
                        f"router {self.version}: golden vector {row}: {name} is off by {error:.1e},"
                        f" want at most {self.manifest.tolerance:.0e}; its weights are not those that were trained"
                    )


def _in_bytes(bundle: Bundle) -> tuple[Mapping[str, Array], Golden]:
    if bundle.compact is None:
        raise BundleError(
            f"router {bundle.manifest.version}: has no weights in bytes; train with compression.kept below 1"
        )
    return unpack(bundle.compact.packed), bundle.compact.golden


def _expected(golden: Golden, row: int) -> dict[str, NDArray[np.float32]]:
    arrays = golden.arrays()
    names = ("model_probs", "context_probs", "temperature", "top_p", "confidence", "quality", "utility")
    return {**{name: arrays[name][row] for name in names}, "hidden": golden.next_hidden[row]}


def _joined(features: Array, hidden: Array | None, size: int) -> Weights:
    """(129,), or (128 + H + 1,) with the hidden state behind the features, and a 1; checked."""
    given = np.asarray(features)
    if given.shape != (N_FEATURES,):
        raise InputError(f"features: shape {given.shape}, want ({N_FEATURES},)")
    if hidden is None:
        joined = np.concatenate((given, _ONE), dtype=np.float64)
    else:
        carried = np.asarray(hidden)
        if carried.shape != (size,):
            raise InputError(f"hidden state: shape {carried.shape}, want ({size},)")
        joined = np.concatenate((given, carried, _ONE), dtype=np.float64)
    if not math.isfinite(joined.dot(joined)):  # a tenth of the time of isfinite().all()
        what = "hidden state" if np.isfinite(joined[:N_FEATURES]).all() else "features"
        raise InputError(f"{what}: a value is not finite, want numbers")
    return joined


def _shares(what: str, logits: list[float], allowed: Sequence[bool]) -> list[float]:
    """Softmax over the allowed places; the others are exactly 0."""
    if len(allowed) != len(logits) or not any(allowed):
        raise InputError(f"{what}: none of {len(logits)} places is allowed, want at least one")
    if not all(allowed):
        logits = [logit if ok else -math.inf for logit, ok in zip(logits, allowed, strict=True)]
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def _sigmoid(logit: float) -> float:
    return 0.5 + 0.5 * math.tanh(0.5 * logit)
