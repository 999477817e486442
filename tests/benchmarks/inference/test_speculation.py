"""Speculative decoding on each tier: is it the same answer, and is it faster?

    python -m pytest -m benchmark tests/benchmarks/inference/test_speculation.py --shapes chat,few-shot,350m --rounds 10

`--shapes` also takes the packaged tiers by their style; `--rounds` is the number of questions. Seconds are this
process's CPU on one thread. Blank LFM2 files say nonsense that repeats itself, so how often a draft is accepted says
nothing about LFM2: there, read the costs and whether the tokens stay the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ruvllm.inference.shapes import SHAPES
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.settings import load_settings
from tests.benchmarks.inference import counted
from tests.benchmarks.inference.drafting import Decoded, Drafting, decode, expected_speedup, foresight, lookup, no_draft
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark
N_CTX, CONTEXT, ANSWER = 2048, 512, 48
BATCHES = (1, 2, 4, 8, 16)
DRAFTED = (3, 7)
ALPHAS = (0.5, 0.7, 0.8, 0.9)


@dataclass
class Model:
    name: str
    tier: Tier
    engine: Drafting


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--keep")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("speculation")


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, folder: Path) -> Iterator[list[Model]]:
    settings = load_settings(state_dir=folder / "state", accept_gemma_terms=True)
    made = []
    for name in request.config.getoption("--shapes").split(","):
        tier, path = counted.model_file(name, settings, folder)
        engine = Drafting(path, N_CTX)
        engine.set_threads(1, 1)
        made.append(Model(name, tier, engine))
    yield made
    for model in made:
        model.engine.close()


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, folder: Path) -> Report:
    return counted.report("speculation", request.config, folder)


# -- drafts, looked up and foreseen


def test_drafts(models: list[Model], report: Report, request: pytest.FixtureRequest) -> None:
    n = request.config.getoption("--rounds")
    report.table(
        f"Speculative decoding, greedy, at most {ANSWER} tokens behind {CONTEXT} tokens of context",
        (
            "model",
            "drafts",
            "at once",
            "answers",
            "accepted of drafted",
            "tokens a batch",
            "same tokens",
            "plain s / drafted s (quartiles)",
            "verdict",
        ),
        [row for model in models for row in _draft_rows(model, n)],
        "On only where every answer is the same and the lower quartile is above 1. Looked up: what followed the last "
        "three (or two) tokens earlier in the prompt. Foreseen: the plain answer itself with every fifth token wrong, "
        "a bound that costs nothing to draft. The style's stop does not apply, so that answers are long.",
    )


def _draft_rows(model: Model, n: int) -> list[tuple[str | int | float, ...]]:
    prompts = [_tokens(model, query) for query in counted.asked(model.tier, model.engine, (CONTEXT,), n)]
    plain: list[Decoded] = []
    drafted: dict[tuple[str, int], list[Decoded]] = {}
    for prompt in prompts:  # in turn, so that a busy machine slows all alike
        plain.append(decode(model.engine, prompt, ANSWER, no_draft))
        for k in DRAFTED:
            for by, draft in (("looked up", lookup(k)), ("foreseen", foresight(prompt, plain[-1].tokens, k))):
                drafted.setdefault((by, k), []).append(decode(model.engine, prompt, ANSWER, draft))
    return [_draft_row(model.name, by, k, plain, made) for (by, k), made in drafted.items()]


def _tokens(model: Model, query: dict) -> list[int]:
    (prompt,) = query.values()
    parts = (*prompt.static, *prompt.history, *prompt.context, *prompt.question)
    return [*model.engine.begin_tokens(), *model.engine.tokenise_segments(parts)]


def _draft_row(
    name: str, by: str, k: int, plain: list[Decoded], drafted: list[Decoded]
) -> tuple[str | int | float, ...]:
    same = sum(p.tokens == d.tokens for p, d in zip(plain, drafted, strict=True))
    # By the token: an answer that differs may also differ in length.
    ratios = [
        (p.seconds / (len(p.tokens) - 1)) / (d.seconds / (len(d.tokens) - 1))
        for p, d in zip(plain, drafted, strict=True)
        if len(p.tokens) > 1 and len(d.tokens) > 1
    ]
    accepted, tried, batches = (sum(getattr(d, what) for d in drafted) for what in ("accepted", "drafted", "batches"))
    exact, faster = same == len(plain), bool(accepted and ratios and np.quantile(ratios, 0.25) > 1)
    verdict = "on" if exact and faster else f"off: {' and '.join(_why(exact, faster))}"
    return (
        name,
        by,
        k,
        len(plain),
        f"{accepted} of {tried}",
        round((batches + accepted) / max(1, batches), 2),
        f"{same} of {len(plain)}",
        counted.quartiles(ratios or [float("nan")]),
        verdict if by == "looked up" else "a bound",
    )


def _why(exact: bool, faster: bool) -> list[str]:
    return [*([] if exact else ["not the same tokens"]), *([] if faster else ["not faster"])]


# -- what a batch and undoing it cost


def test_costs_in_plain_tokens(models: list[Model], report: Report, request: pytest.FixtureRequest) -> None:
    n = request.config.getoption("--rounds")
    costs = [_costs(model, max(5, n)) for model in models]
    report.table(
        f"What a batch costs behind {CONTEXT} tokens, in plain tokens",
        ("model", "plain token ms", *(f"batch of {k}" for k in BATCHES), "save and restore", "state MB", "takes back"),
        [(c.name, c.token_ms, *(c.batch[k] for k in BATCHES), c.undo, c.state_mb, c.takes_back) for c in costs],
        f"Medians of {max(5, n)} CPU times.",
    )
    report.table(
        "Draft-model speculation by arithmetic: expected speed-up over plain decoding",
        ("model", "drafted by", "drafted at once", "undo", *(f"accepted {alpha:.0%}" for alpha in ALPHAS)),
        [row for cost in costs for row in _draft_model_rows(cost)],
        "Leviathan et al. 2023, theorem 3.8, with the batch's and undoing's cost of the table above and the draft "
        "model's as its share of parameters. How often a real LFM2's draft would be accepted cannot be measured "
        "without its weights; a free draft (0) is the bound of any draft, looked up ones too. The packaged tiers "
        "have no draft model: SmolLM2 has 49,152 tokens, Gemma 262,144, and a draft is verified token by token.",
    )


@dataclass
class Costs:
    name: str
    token_ms: float
    batch: dict[int, float]
    undo: float
    state_mb: float
    takes_back: str


def _costs(model: Model, n: int) -> Costs:
    engine = model.engine
    tokens = (engine.tokenise("The harbour of Velm has fourteen piers and a light. " * 200, special=False) * 8)[
        :CONTEXT
    ]
    engine.clear()
    engine.evaluate(tokens)
    start = engine.snapshot()
    seconds: dict[int, list[float]] = {k: [] for k in BATCHES}
    undo: list[float] = []
    for _ in range(n):
        for k in BATCHES:
            undo.append(_seconds(lambda: engine.restore(engine.snapshot())))
            engine.restore(start)
            seconds[k].append(_seconds(lambda k=k: engine.best_after_each(tokens[:k])))
    engine.restore(start)
    engine.evaluate(tokens[:4])
    token = float(np.median(seconds[1]))
    return Costs(
        model.name,
        token * 1e3,
        {k: float(np.median(seconds[k])) / token for k in BATCHES},
        float(np.median(undo)) / token,
        len(start.state) / 1e6,
        "yes" if engine.take_back(2) else "refused",
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _draft_model_rows(cost: Costs) -> list[tuple[str | int | float, ...]]:
    drafts = {"nothing (free)": 0.0, **_smaller(cost.name)}
    rows = []
    for by, share in drafts.items():
        for k in DRAFTED:
            redo = 0.0 if cost.takes_back == "yes" else cost.undo + cost.batch[4]
            gains = [expected_speedup(alpha, k, share, cost.batch[k + 1], redo) for alpha in ALPHAS]
            undo = "taken back" if cost.takes_back == "yes" else "restored, evaluated again"
            rows.append((cost.name, by, k, undo, *gains))
    return rows


def _smaller(name: str) -> dict[str, float]:
    """Shapes of the family that could draft for this one, with their share of its parameters."""
    wanted = SHAPES.get(f"lfm2-{name}")
    if wanted is None:
        return {}
    return {n: s.parameters / wanted.parameters for n, s in SHAPES.items() if s.parameters < wanted.parameters}


def test_the_packaged_tiers_have_other_vocabularies() -> None:
    settings = load_settings(accept_gemma_terms=True)
    engines = [Drafting(counted.model_file(style, settings, Path())[1], 512) for style in counted.STYLES]
    tables: Sequence[int] = [engine.n_vocab for engine in engines]
    assert len(set(tables)) == len(load_catalogue()["packaged"]) == 2
    for engine in engines:
        engine.close()
