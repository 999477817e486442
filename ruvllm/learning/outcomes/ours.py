"""The router's own network on outcomes, behind the same door as the baselines: its cell, linear path and quality head.

Knows nothing of sessions (every query is a first turn, h = 0), of bundles and of costs. More inputs than the network's
128 are reduced to their principal components, fitted on the training rows.

The linear path starts at the logistic regression that it contains, solved to its minimum, and stays there; the cell
then learns what that leaves over. What the tiers have in common (a query is hard) and what they differ in are held back
apart: the level may follow the data where the contrasts, which alone decide, are mostly noise. How much, and for how
many steps the cell is trained, is chosen on held-out folds of the rows given, none of which is lost: what is chosen is
then fitted on all of them. The level is chosen by its cross-entropy, the rest by the squared error of the differences
between tiers, which is what a decision lives on. The plainest choice (`Recipe.usual`, no step of the cell) stays unless
another is better by a standard error (Breiman et al. 1984, section 3.4.3): on a thousand rows the best of several is
mostly luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from ruvllm.learning.compress import AfterStep, sparse
from ruvllm.learning.config import CompressionConfig
from ruvllm.learning.outcomes.networks import Reduction, Training, make_reduction, tier_loss
from ruvllm.learning.outcomes.predictors import Array, QualityPredictor, Wide, check_lesson
from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.fastgrnn import Cell, RouterNetwork
from ruvllm.router.layout import N_FEATURES

T = TypeVar("T")

_QUALITY_ROWS = slice(N_TIERS + N_BINS, 2 * N_TIERS + N_BINS)  # of the network's linear path
_CLOSE = 1e-7  # change of the loss at which the linear path counts as solved


@dataclass(frozen=True)
class Strength:
    """How far the linear path may go; sklearn's C of what the tiers have in common and of what they differ in."""

    level: float
    contrast: float


@dataclass(frozen=True)
class Recipe:
    """How the network is fitted; chosen on training rows (benchmark test_settings)."""

    levels: tuple[float, ...] = (0.003, 0.01, 0.03)  # strength of what tiers have in common, as sklearn's C
    contrasts: tuple[float, ...] = (0.003, 0.01, 0.03)  # of what they differ in
    usual: float = 0.01  # of both
    errors: float = 1.0  # standard errors by which another choice has to be better than the usual one
    folds: int = 4
    training: Training = field(default_factory=lambda: Training(steps=160, order_weight=0.0))


@dataclass(frozen=True, eq=False)
class FittedRouter:
    """A network whose quality head says what each of `tiers` will score."""

    network: RouterNetwork
    reduction: Reduction
    tiers: int
    strength: Strength
    steps: int

    def predict(self, x: Array) -> Wide:
        """(n, d) -> (n, m) in (0, 1)."""
        with torch.no_grad():
            logits = quality_logits(self.network, torch.as_tensor(self.reduction.apply(x)), self.tiers)
        return torch.sigmoid(logits).double().numpy()


@dataclass(frozen=True)
class FastGrnnQuality:
    """Our router on outcomes."""

    name: str = "FastGRNN (ours)"
    cell: Cell = field(default_factory=Cell)
    recipe: Recipe = field(default_factory=Recipe)

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        return self.fit_router(x, score, seed)

    def fit_router(self, x: Array, score: Wide, seed: int) -> FittedRouter:
        """The same, with the network in hand."""
        check_lesson(x, score)
        reduction = make_reduction(x, N_FEATURES)
        rows = _Rows(torch.as_tensor(reduction.apply(x)), torch.as_tensor(score, dtype=torch.float32))
        splits = _splits(len(x), self.recipe, seed)
        strength = _best_strength(rows, splits, self.recipe)
        steps = self._best_steps(rows, splits, strength, seed)
        network = self._start(rows, strength, seed)
        train_cell(network, rows.x, rows.score, self.recipe.training, steps, seed)
        return FittedRouter(network, reduction, score.shape[1], strength, steps)

    def slim(
        self, fitted: FittedRouter, x: Array, score: Wide, seed: int, how: CompressionConfig, linear: bool = True
    ) -> FittedRouter:
        """The same router after the paper's second and third phase on the same rows (compress.py)."""
        inputs = torch.as_tensor(fitted.reduction.apply(x))
        scores = torch.as_tensor(score, dtype=torch.float32)

        def go_on(network: RouterNetwork, steps: int, after_step: AfterStep) -> None:
            after_step(0, network)  # the linear path is not trained: what is small in it goes at once
            train_cell(network, inputs, scores, self.recipe.training, steps, seed, after_step=after_step)

        return replace(fitted, network=sparse(fitted.network, go_on, how, linear))

    def _start(self, rows: _Rows, strength: Strength, seed: int) -> RouterNetwork:
        """The linear path solved, the quality head at 0: the network is the logistic regression."""
        network = RouterNetwork(self.cell, seed)
        weight, bias = solve_linear(rows.x, rows.score, strength)
        tiers = rows.score.shape[1]
        head = cast(nn.Linear, network.heads["quality"])
        with torch.no_grad():
            network.wide[_QUALITY_ROWS][:tiers] = weight
            head.weight.zero_()
            head.bias[:tiers] = bias
        return network

    def _best_steps(self, rows: _Rows, splits: list[_Split], strength: Strength, seed: int) -> int:
        training = self.recipe.training
        losses: dict[int, list[Tensor]] = {}
        for split in splits:
            learn, held = rows.of(split.learn), rows.of(split.held)
            network = self._start(learn, strength, seed)

            def check(step: int, network: RouterNetwork, held: _Rows = held) -> None:
                losses.setdefault(step, []).append(_errors(network, held))

            train_cell(network, learn.x, learn.score, training, training.steps, seed, check)
        return surest({step: torch.cat(parts) for step, parts in losses.items()}, 0, self.recipe.errors)


@dataclass(frozen=True, eq=False)
class _Rows:
    x: Tensor  # (n, 128)
    score: Tensor  # (n, m)

    def of(self, rows: Tensor) -> _Rows:
        return _Rows(self.x[rows], self.score[rows])


@dataclass(frozen=True, eq=False)
class _Split:
    learn: Tensor
    held: Tensor


def quality_logits(network: RouterNetwork, x: Tensor, tiers: int) -> Tensor:
    """(n, 128) -> (n, m), each query a first turn."""
    return network.read(network.step(x, network.first_hidden(len(x))), x).quality[:, :tiers]


def solve_linear(x: Tensor, score: Tensor, strength: Strength) -> tuple[Tensor, Tensor]:
    """Weights w (m, d) and biases (m,) of least

        sum BCE + m |mean w|^2 / (2 level) + sum_t |w_t - mean w|^2 / (2 contrast)

    over what was run; a score between 0 and 1 is that share of a success. With both strengths the same it is logistic
    regression tier by tier. Convex, so L-BFGS finds the one minimum (Liu and Nocedal 1989).
    """
    tiers = score.shape[1]
    known = torch.isfinite(score)
    target = torch.where(known, score, 0.0)
    means = torch.nanmean(score, dim=0).clamp(0.02, 0.98)
    weight, bias = torch.zeros(tiers, x.shape[1], requires_grad=True), torch.logit(means).requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, tolerance_change=_CLOSE, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        each = nn.functional.binary_cross_entropy_with_logits(x @ weight.T + bias, target, reduction="none")
        common = weight.mean(dim=0)
        held = tiers * (common**2).sum() / (2 * strength.level)
        held = held + ((weight - common) ** 2).sum() / (2 * strength.contrast)
        loss = torch.where(known, each, 0.0).sum() + held
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def contrast_errors(logits: Tensor, score: Tensor) -> Tensor:
    """(n,) squared error of the differences between tiers, the mean over a row's pairs that were both run; NaN where
    there are none. Logits and scores (n, m)."""
    off = torch.sigmoid(logits) - score  # NaN where not run
    pairs = torch.combinations(torch.arange(score.shape[1]), 2)
    return torch.nanmean((off[:, pairs[:, 0]] - off[:, pairs[:, 1]]) ** 2, dim=1)


def entropies(logits: Tensor, score: Tensor) -> Tensor:
    """(n,) cross-entropy of the scores, the mean over the tiers that were run."""
    known = torch.isfinite(score)
    target = torch.where(known, score, 0.0)
    each = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.nanmean(torch.where(known, each, torch.nan), dim=1)


def surest(losses: Mapping[T, Tensor], usual: T, errors: float) -> T:
    """The choice of least mean loss, or the usual one where that is not better by so many standard errors.

    `losses` (n,) a choice, of the same held-out rows; rows with NaN say nothing.
    """
    means = {choice: float(torch.nanmean(loss)) for choice, loss in losses.items()}
    best = min(means, key=lambda choice: means[choice])
    gain = losses[usual] - losses[best]
    gain = gain[torch.isfinite(gain)]
    doubt = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else float("inf")
    return best if means[usual] - means[best] > errors * doubt else usual


def train_cell(
    network: RouterNetwork,
    x: Tensor,
    score: Tensor,
    training: Training,
    steps: int,
    seed: int,
    check: Callable[[int, RouterNetwork], None] | None = None,
    after_step: Callable[[int, RouterNetwork], None] | None = None,
) -> None:
    """Train cell and quality head on what the linear path leaves over; the path itself stays as it is."""
    draw = torch.Generator().manual_seed(seed)
    tiers, first = score.shape[1], network.first_hidden(min(training.batch, len(x)))
    straight = (x @ network.wide[_QUALITY_ROWS][:tiers].T).detach()
    head = network.heads["quality"]
    optimiser = _optimiser(network, training)
    for step in range(steps + 1):
        if check and step % training.check_every == 0:
            check(step, network)
        if step == steps:
            return
        rows = torch.randint(len(x), (len(first),), generator=draw)
        keep = (torch.rand((len(rows), x.shape[1]), generator=draw) >= training.dropout) / (1 - training.dropout)
        logits = head(network.step(x[rows] * keep, first))[:, :tiers] + straight[rows]
        optimiser.zero_grad()
        tier_loss(logits, score[rows], training).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if after_step:
            after_step(step, network)


def _optimiser(network: RouterNetwork, training: Training) -> torch.optim.AdamW:
    """Of the cell and the quality head; weight decay on matrices only."""
    trained = [p for name, p in network.named_parameters() if name.startswith(("cell.", "heads.quality."))]
    groups = [
        {"params": [p for p in trained if p.ndim == 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def _splits(n: int, recipe: Recipe, seed: int) -> list[_Split]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    folds = order.chunk(min(recipe.folds, n))
    return [
        _Split(torch.cat([fold for place, fold in enumerate(folds) if place != number]), folds[number])
        for number in range(len(folds))
    ]


def _best_strength(rows: _Rows, splits: list[_Split], recipe: Recipe) -> Strength:
    """The level by cross-entropy, then the contrast by the error of the differences."""

    def held_out(strength: Strength, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        parts = []
        for split in splits:
            learn, held = rows.of(split.learn), rows.of(split.held)
            weight, bias = solve_linear(learn.x, learn.score, strength)
            parts.append(loss(held.x @ weight.T + bias, held.score))
        return torch.cat(parts)

    levels = {level: held_out(Strength(level, level), entropies) for level in recipe.levels}
    level = surest(levels, recipe.usual, recipe.errors)
    contrasts = {contrast: held_out(Strength(level, contrast), contrast_errors) for contrast in recipe.contrasts}
    return Strength(level, surest(contrasts, recipe.usual, recipe.errors))


def _errors(network: RouterNetwork, rows: _Rows) -> Tensor:
    with torch.no_grad():
        return contrast_errors(quality_logits(network, rows.x, rows.score.shape[1]), rows.score)
