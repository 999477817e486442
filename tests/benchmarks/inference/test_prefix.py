"""What kept states save: a query's bins answered in one go or one by one, and prompts with and without a kept prefix.

    python -m pytest -m benchmark tests/benchmarks/inference/test_prefix.py --shapes chat,few-shot,350m --rounds 5

`--shapes` also takes the packaged tiers by their style; `--rounds` is the number of questions. `-k five` measures the
five bins of the specification, `-k routed` those that the oracle runs. Tokens are counted where they are evaluated and
do not depend on the machine; of seconds (this process's CPU, one thread) read the ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest

from ruvllm.inference.generation import Generator
from ruvllm.inference.halt import Halt
from ruvllm.inference.prompt import build
from ruvllm.inference.snapshots import Snapshots
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import BINS, ROUTED_BINS, Generation, NestedGeneration, Prompt, Sampling
from ruvllm.settings import load_settings
from tests.benchmarks.inference import counted
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark
N_CTX = 4096 + 1024
ANSWER = Sampling(max_tokens=16)
FIRST = Sampling(max_tokens=1)
ROOM = 2**30
TURNS = tuple((f"What is said of harbour {n}?", "It has fourteen piers and a light on the rock.") for n in range(4))
T = TypeVar("T")


@dataclass
class Model:
    name: str
    tier: Tier
    engine: counted.Counting

    def generator(self, budget: int = ROOM) -> Generator:
        return Generator(self.engine, self.tier.stop, Snapshots(budget), time.process_time)

    def count(self, work: Callable[[], T]) -> tuple[T, int, float]:
        """What `work` returns, the tokens that it evaluated and its CPU seconds."""
        before, began = self.engine.evaluated, time.process_time()
        done = work()
        return done, self.engine.evaluated - before, time.process_time() - began


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--keep")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("prefix")


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, folder: Path) -> Iterator[list[Model]]:
    settings = load_settings(state_dir=folder / "state", accept_gemma_terms=True)
    made = []
    for name in request.config.getoption("--shapes").split(","):
        tier, path = counted.model_file(name, settings, folder)
        made.append(Model(name, tier, counted.opened(path, N_CTX)))
    yield made
    for model in made:
        model.engine.close()


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, folder: Path) -> Report:
    return counted.report("prefix", request.config, folder)


# -- the oracle's economy


@pytest.mark.parametrize("bins", [ROUTED_BINS, BINS], ids=["routed", "five"])
def test_the_bins_of_a_query(
    models: list[Model], report: Report, request: pytest.FixtureRequest, bins: Sequence[int]
) -> None:
    n = request.config.getoption("--rounds")
    rows = [_bins_row(model, counted.asked(model.tier, model.engine, bins, n)) for model in models]
    report.table(
        f"One query's {len(bins)} bins ({bins[0]} to {bins[-1]}) in one go, one by one, and from nothing",
        (
            "model",
            "queries",
            "tokens in one go",
            "one by one, static kept",
            "one by one, nothing kept",
            "the largest alone",
            "CPU s in one go / one by one (quartiles)",
            "cold_prefill_s / prefill of a single request (quartiles)",
            "same answers",
        ),
        rows,
        "Tokens evaluated per query, those of answers too (at most 16 a bin). `cold_prefill_s` is what the oracle "
        "books as a bin's latency; the last column but one holds it against a request for that bin alone.",
    )


def _bins_row(model: Model, queries: list[dict[int, Prompt]]) -> tuple[str | int | float, ...]:
    together, kept, nothing, largest, ratios, booked, same = 0, 0, 0, 0, [], [], 0
    for prompts in queries:
        nested, tokens, seconds = model.count(lambda p=prompts: _nested(model, p))
        together += tokens
        singles, tokens, single_s = model.count(lambda p=prompts: _one_by_one(model, p))
        kept += tokens
        ratios.append(seconds / single_s)
        nothing += tokens + _static(model, prompts) * (len(prompts) - 1)
        largest += singles[-1].prompt_tokens + singles[-1].completion_tokens - 1
        booked += [n.cold_prefill_s / s.prefill_s for n, s in zip(nested, singles, strict=True) if n.spent_s][1:]
        same += sum(n.generation.text == s.text for n, s in zip(nested, singles, strict=True))
    n = len(queries)
    share = f"{same} of {sum(map(len, queries))}"
    means = [round(count / n) for count in (together, kept, nothing, largest)]
    return (model.name, n, *means, counted.quartiles(ratios), counted.quartiles(booked or [float("nan")]), share)


def _static(model: Model, prompts: dict[int, Prompt]) -> int:
    static = next(iter(prompts.values())).static
    return len(model.engine.begin_tokens()) + len(model.engine.tokenise_segments(static))


def _nested(model: Model, prompts: dict[int, Prompt]) -> list[NestedGeneration]:
    return model.generator().generate_nested(list(prompts.items()), ANSWER, Halt())


def _one_by_one(model: Model, prompts: dict[int, Prompt]) -> list[Generation]:
    """A generator of its own, so that the first evaluates the static prefix, as the nested call does."""
    generator = model.generator()
    return [generator.generate(prompt, ANSWER, Halt()) for prompt in prompts.values()]


# -- prompts with and without a kept prefix


def test_first_token_with_and_without_a_kept_prefix(
    models: list[Model], report: Report, request: pytest.FixtureRequest
) -> None:
    n = request.config.getoption("--rounds")
    rows = [row for model in models for row in _prefix_rows(model, n)]
    report.table(
        "First token of a follow-up question with 256 tokens of context, by what is kept",
        ("model", "kept", "requests", "prompt tokens", "reused", "evaluated", "CPU s / from nothing (quartiles)"),
        rows,
        "Four earlier turns. Static: the state at the end of the static prefix; conversation: at the end of the turns.",
    )


def _prefix_rows(model: Model, n: int) -> list[tuple[str | int | float, ...]]:
    prompts = [
        replace(query[256], history=_history(model)) for query in counted.asked(model.tier, model.engine, (256,), n)
    ]
    kept = {
        "nothing": [model.generator(0)] * n,
        "static": [_warm(model, replace(prompt, history=())) for prompt in prompts],
        "conversation": [_warm(model, prompt) for prompt in prompts],
    }
    seconds: dict[str, list[float]] = {}
    answers: dict[str, list[Generation]] = {}
    for i, prompt in enumerate(prompts):  # in turn, so that a busy machine slows all alike
        for name, generators in kept.items():
            done, _, took = model.count(lambda g=generators[i], p=prompt: g.generate(p, FIRST, Halt()))
            seconds.setdefault(name, []).append(took)
            answers.setdefault(name, []).append(done)
    assert [g.text for g in answers["conversation"]] == [g.text for g in answers["nothing"]]
    return [_prefix_row(model.name, name, answers[name], seconds[name], seconds["nothing"]) for name in kept]


def _prefix_row(
    model: str, name: str, answers: list[Generation], seconds: list[float], cold: list[float]
) -> tuple[str | int | float, ...]:
    prompt, reused = (
        round(sum(getattr(a, what) for a in answers) / len(answers)) for what in ("prompt_tokens", "cached_tokens")
    )
    ratios = counted.quartiles([s / c for s, c in zip(seconds, cold, strict=True)])
    return (model, name, len(answers), prompt, reused, prompt - reused, ratios)


def _history(model: Model) -> tuple:
    return build(model.tier, "x", (), TURNS).history


def _warm(model: Model, prompt: Prompt) -> Generator:
    generator = model.generator()
    generator.generate(prompt, FIRST, Halt())
    return generator
