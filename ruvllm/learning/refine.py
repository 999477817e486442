"""Online refinement: a candidate near the champion, from scored answers alone. Knows nothing of a database or MLflow.

An answer shows the quality of one tier, the decided one. The champion's network goes on from its weights with

    L = sum w (BCE of that tier's quality head) / sum w + lambda / 2 (N_old / N_new) sum F (theta - theta*)^2

w = min(1 / propensity, `most`): weighted so, answers count as if every pair had been tried as often (Horvitz and
Thompson 1952; cut after Ionides 2008). The EWC penalty of the champion's own anchor stands for the N_old questions that
it was trained on. How far the caution in favour of the best fixed choice may fall is chosen on folds of the same
answers, by the doubly robust value of what networks that did not see them would decide.

A fifth of the sessions is never fitted: on these `held` the off-policy estimate speaks of the candidate. A refined
bundle is a bundle like any other, and passes the same gates; it has no weights in bytes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ruvllm.errors import LearningError
from ruvllm.learning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ruvllm.learning.ewc import Ewc
from ruvllm.learning.fit import Batch, forward
from ruvllm.learning.off_policy import make_log
from ruvllm.learning.selection import choose_caution, decisions, folds
from ruvllm.learning.sessions import sessions_of, unrolled
from ruvllm.learning.traffic import Traffic
from ruvllm.learning.train import make_golden
from ruvllm.router.bundle import write_bundle
from ruvllm.router.decision import N_BINS
from ruvllm.router.fastgrnn import RouterNetwork
from ruvllm.router.manifest import QUALITY
from ruvllm.router.runtime import RouterRuntime

Wide = NDArray[np.float64]
Rows = NDArray[np.int64]

_HELD_FOLDS = 5  # one of them is never fitted


@dataclass(frozen=True)
class Recipe:
    """`most` cuts the importance weights; `least` answers are asked for."""

    most: float = 10.0
    least: int = 50
    steps: int = 80
    folds: int = 3
    learning_rate: float = 0.003
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.most >= 1 and self.least >= 2 * _HELD_FOLDS and self.steps >= 1 and self.folds >= 2):
            raise LearningError(
                f"refinement: {self}; want most from 1, least from {2 * _HELD_FOLDS}, steps from 1, folds from 2"
            )


@dataclass(frozen=True, eq=False)
class Refined:
    """A calibrated network near the champion's, and what it was made of."""

    network: RouterNetwork
    checkpoint: Checkpoint  # the champion's
    features: NDArray[np.float32]  # (n, 128) of the traffic, as the router sees them
    held: NDArray[np.bool_]  # (n,) answers that it was not fitted on
    caution: float
    figures: dict[str, float]


def refine(folder: Path, traffic: Traffic, ewc: Ewc, recipe: Recipe | None = None) -> Refined:
    """Go on from the champion in `folder`, which has to be the trainer's. Deterministic on one torch thread.

    Raises:
        LearningError: too few answers, the EWC state is not the champion's, or its quality head does not decide.
        BundleError: the bundle is not whole, or of another ladder than the traffic.
    """
    recipe, checkpoint = recipe or Recipe(), load_checkpoint(folder)
    runtime = RouterRuntime.load(folder)
    _require(runtime, checkpoint, traffic, ewc, recipe)
    features = traffic.seen_by(runtime)
    lesson = _Lesson(traffic, features, make_log(traffic, runtime, recipe.seed).model, recipe, ewc)
    held = _held(traffic, recipe.seed)
    rows = np.flatnonzero(~held)
    bare, caution, fixed = _without_caution(checkpoint.network)
    chosen = _choose_caution(bare, lesson, rows, caution, fixed, checkpoint)
    network = _fitted(bare, lesson, rows)
    _be_cautious(network, chosen, fixed)
    before, after = (_loss_on(each, lesson, np.flatnonzero(held)) for each in (bare, network))
    weights = lesson.weights
    figures = {
        "refined_rows": float(len(rows)),
        "refined_through": float(traffic.interaction.max()),
        "refined_cut": float(np.mean(1 / traffic.propensity > recipe.most)),
        "refined_effective": float(weights[rows].sum() ** 2 / (weights[rows] ** 2).sum()),
        "refined_loss_before": before,
        "refined_loss_after": after,
        "caution": chosen,
    }
    return Refined(network, checkpoint, features, held, chosen, figures)


def write_refined(refined: Refined, version: str, created_at: str, folder: Path) -> str:
    """Write the bundle and its training.safetensors; returns the bundle's digest.

    Raises:
        BundleError: the folder is there, or the disk is full.
    """
    old = refined.checkpoint.bundle
    manifest = replace(
        old.manifest,
        version=version,
        created_at=created_at,
        metrics={**_kept(old.manifest.metrics), **refined.figures},
        files={},
    )
    golden = make_golden(refined.network, refined.features, manifest.calibration.temperature)
    sha256 = write_bundle(
        folder, refined.network.export_arrays(), manifest, golden=golden, transforms=old.transforms
    )  # fmt: skip
    save_checkpoint(folder, refined.network, refined.checkpoint.config, refined.checkpoint.warnings, sha256)
    return sha256


def part_of(traffic: Traffic, rows: NDArray[np.bool_]) -> Traffic:
    """These answers only."""
    columns = (
        "interaction", "features", "embedding", "tier", "bin", "propensity", "quality", "latency_s", "cost", "session",
        "turn",
    )  # fmt: skip
    return replace(traffic, **{name: getattr(traffic, name)[rows] for name in columns})


@dataclass(frozen=True, eq=False)
class _Lesson:
    """Everything a fit reads, for all answers."""

    traffic: Traffic
    features: NDArray[np.float32]  # (n, 128)
    predicted: Wide  # (n, 20) of the doubly robust estimate
    recipe: Recipe
    ewc: Ewc

    @property
    def weights(self) -> Wide:
        """(n,): importance weights, cut."""
        return np.minimum(1 / self.traffic.propensity, self.recipe.most)

    def batch(self, network: RouterNetwork, rows: Rows) -> Batch:
        """The sessions of `rows`, padded to the longest."""
        index = unrolled(sessions_of(self.traffic.session, self.traffic.turn, rows))  # (S, T)
        valid = index >= 0
        x = network.normalise(torch.as_tensor(self.features[np.maximum(index, 0)]))
        return Batch(x, torch.as_tensor(valid), index[valid])


def _require(runtime: RouterRuntime, checkpoint: Checkpoint, traffic: Traffic, ewc: Ewc, recipe: Recipe) -> None:
    runtime.require(traffic.ladder, [name for name in traffic.tiers if name], traffic.encoder_id)
    if runtime.manifest.deciding.head != QUALITY:
        raise LearningError(
            f"refinement: router {runtime.version} decides by its {runtime.manifest.deciding.head} head, want expected"
            " qualities; train with router.decides: quality"
        )
    if len(traffic) < recipe.least:
        raise LearningError(
            f"refinement: {len(traffic)} scored answers, want at least {recipe.least}; wait for more feedback"
        )
    if ewc.origin != checkpoint.origin:
        raise LearningError(
            f"refinement: EWC state of router {ewc.origin.version}, want that of {checkpoint.origin.version};"
            " consolidate the champion first (the next promotion check does)"
        )


def _held(traffic: Traffic, seed: int) -> NDArray[np.bool_]:
    return np.asarray(folds(_groups(traffic), _HELD_FOLDS, seed) == 0)


def _groups(traffic: Traffic) -> NDArray[np.str_]:
    """A session stays together."""
    own = np.char.add("r:", traffic.interaction.astype(np.str_))
    return np.where(traffic.session == "", own, np.char.add("s:", traffic.session))


def _without_caution(network: RouterNetwork) -> tuple[RouterNetwork, float, tuple[int, int]]:
    """A copy without it, how much it was, and in favour of which pair."""
    bare = copy.deepcopy(network)
    tier_shift, bin_shift = bare.tier_shift, bare.bin_shift
    fixed = int(tier_shift.argmax()), int((bin_shift - (bare.bin_mask == 0) * 1e6).argmax())
    caution = float(tier_shift[fixed[0]])
    _be_cautious(bare, -caution, fixed)
    return bare, caution, fixed


def _be_cautious(network: RouterNetwork, caution: float, fixed: tuple[int, int]) -> None:
    network.tier_shift[fixed[0]] += caution
    network.bin_shift[fixed[1]] += caution


def _fitted(start: RouterNetwork, lesson: _Lesson, rows: Rows) -> RouterNetwork:
    network, recipe = copy.deepcopy(start), lesson.recipe
    batch, draw = lesson.batch(network, rows), torch.Generator().manual_seed(recipe.seed)
    penalty = replace(lesson.ewc, penalty=lesson.ewc.penalty * max(lesson.ewc.samples, 1) / len(rows))
    dropout = 0.5  # as in training: what single places say of few answers is mostly noise
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    for _ in range(recipe.steps):
        keep = (torch.rand((batch.x.shape[0], 1, batch.x.shape[2]), generator=draw) >= dropout) / (1 - dropout)
        loss = _loss(network, batch, lesson, keep) + penalty.loss(dict(network.named_parameters()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network


def _loss(network: RouterNetwork, batch: Batch, lesson: _Lesson, keep: Tensor | None = None) -> Tensor:
    traffic, rows = lesson.traffic, batch.rows
    logits = forward(network, batch, keep).quality[torch.arange(len(rows)), torch.as_tensor(traffic.tier[rows])]
    target = torch.as_tensor(traffic.quality[rows], dtype=torch.float32)
    weights = torch.as_tensor(lesson.weights[rows], dtype=torch.float32)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weights * each).sum() / weights.sum()


def _loss_on(network: RouterNetwork, lesson: _Lesson, rows: Rows) -> float:
    with torch.no_grad():
        return float(_loss(network, lesson.batch(network, rows), lesson))


def _choose_caution(
    bare: RouterNetwork, lesson: _Lesson, rows: Rows, caution: float, fixed: tuple[int, int], checkpoint: Checkpoint
) -> float:
    """Never above the champion's; the rule is that of training, the utilities doubly robust."""
    fold = folds(_groups(lesson.traffic)[rows], lesson.recipe.folds, lesson.recipe.seed)
    tiers, bins = np.zeros((len(rows), 4)), np.zeros((len(rows), N_BINS))
    for number in range(int(fold.max()) + 1):
        out = rows[fold == number]
        network = _fitted(bare, lesson, rows[fold != number])
        with torch.no_grad():
            batch = lesson.batch(network, out)
            outputs = forward(network, batch)
        place = np.searchsorted(rows, batch.rows)
        tiers[place], bins[place] = outputs.choice.numpy(), outputs.context.numpy()
    everywhere = np.tile(np.array(fixed, dtype=np.int64), (len(rows), 1))

    def utility_at(tried: float) -> Wide:
        return _doubly_robust(lesson, rows, decisions(tiers, bins, everywhere, tried))

    selection = checkpoint.config.selection
    tried = tuple(sorted({*(c for c in selection.caution if c <= caution), caution}))
    return choose_caution(utility_at, replace(checkpoint.config, selection=replace(selection, caution=tried)))


def _doubly_robust(lesson: _Lesson, rows: Rows, pairs: NDArray[np.int64]) -> Wide:
    """(m,): prediction for what would be decided, and where that was done the weighted miss of it."""
    traffic, at = lesson.traffic, np.arange(len(rows))
    predicted = lesson.predicted[rows]
    wanted, done = pairs[:, 0] * N_BINS + pairs[:, 1], traffic.tier[rows] * N_BINS + traffic.bin[rows]
    missed = traffic.utility[rows] - predicted[at, done]
    return np.asarray(predicted[at, wanted] + (wanted == done) * lesson.weights[rows] * missed, dtype=np.float64)


def _kept(metrics: object) -> dict[str, float]:
    """Of the champion's figures, those that are still true of the refined router."""
    return {name: value for name, value in dict(metrics).items() if name in ("n_train", "steps", "anchored")}  # type: ignore[call-overload]
