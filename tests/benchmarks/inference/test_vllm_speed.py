"""vLLM on this machine: the same prompts 1, 8 and 32 at a time, with prefix caching on and off.

    RUVLLM_VLLM_PYTHON=.venv-vllm/bin/python python -m pytest -m benchmark \\
        tests/benchmarks/inference/test_vllm_speed.py --keep FOLDER --shapes tiny,350m --rounds 3

A blank checkpoint of each shape is written to FOLDER; two servers serve it, one with the cache and one without, and are
asked in turn, so that other work slows both alike: read the ratios. A round's prompts begin with text of that round
alone, so that a cache that is warm has read this round's prefix and no answer before. Both are first asked unmeasured.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ruvllm.inference import vllm_server
from ruvllm.inference.blank import write_checkpoint
from ruvllm.inference.prompt import build
from ruvllm.inference.shapes import Shape, find_shape
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.inference.types import Generation, Prompt, Sampling
from ruvllm.inference.vllm import VllmModel
from ruvllm.inference.vllm_command import Plan
from ruvllm.settings import Settings, load_settings
from tests.benchmarks.memory.report import Report, conditions

pytestmark = pytest.mark.benchmark
BATCHES = (1, 8, 32)
ANSWER, N_CTX, DEADLINE = 16, 2048, 600.0
KNOWN = ["tiny", "350m", "700m", "1.2b", "2.6b"]


@dataclass(frozen=True)
class Round:
    """One batch: wall-clock seconds of the whole, and its answers."""

    seconds: float
    answers: list[Generation]

    @property
    def cached(self) -> float:
        return sum(a.cached_tokens for a in self.answers) / sum(a.prompt_tokens for a in self.answers)

    @property
    def first_token_s(self) -> float:
        return statistics.median(a.prefill_s for a in self.answers)


@pytest.fixture(scope="module", params=KNOWN)
def shape(request: pytest.FixtureRequest) -> Shape:
    if request.param not in request.config.getoption("--shapes").split(","):
        pytest.skip("not among --shapes")
    return find_shape(request.param)


@pytest.fixture(scope="module")
def keep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--keep")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    python = os.environ.get("RUVLLM_VLLM_PYTHON", "")
    return load_settings({}, state_dir=tmp_path_factory.mktemp("state"), vllm_python=python, deadline_s=DEADLINE)


@pytest.fixture(scope="module")
def models(shape: Shape, keep: Path, settings: Settings) -> Iterator[dict[str, VllmModel]]:
    folder = keep / f"blank-{shape.name}"
    if not (folder / "config.json").is_file():
        write_checkpoint(folder, shape)
    opened: dict[str, VllmModel] = {}
    tier = replace(load_catalogue()["lfm2"][0], name=shape.name)
    try:
        for place, caching in enumerate((True, False)):
            port = vllm_server.port_of(settings, shape.name, place)
            plan = Plan(shape.name, folder, port, N_CTX, prefix_caching=caching, threads=1, kv_gib=2)
            vllm_server.up(plan, settings, place)
            opened["on" if caching else "off"] = VllmModel(tier, [plan.url], settings)
        yield opened
    finally:
        for model in opened.values():
            model.close()
        vllm_server.down(settings)


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, shape: Shape, keep: Path) -> Report:
    made = Report(f"vllm-{shape.name}", Path(request.config.getoption("--out") or keep / "results"))
    made.conditions = conditions(rounds=request.config.getoption("--rounds"), threads=1, answer=f"{ANSWER} tokens")
    return made


def test_batches_with_and_without_prefix_caching(
    models: dict[str, VllmModel], shape: Shape, report: Report, request: pytest.FixtureRequest
) -> None:
    tier, rounds = next(iter(models.values())).tier, request.config.getoption("--rounds")
    rows = []
    for batch in BATCHES:
        taken: dict[str, list[Round]] = {"on": [], "off": []}
        for number in range(rounds + 1):
            prompts = _prompts(tier, batch, f"{batch} and {number}")
            for name in ("on", "off") if number % 2 else ("off", "on"):
                taken[name].append(_round(models[name], prompts))
        rows.append(_row(batch, {name: each[1:] for name, each in taken.items()}))
    assert all(answer.completion_tokens for each in taken.values() for one in each for answer in one.answers)
    columns = (
        *("batch", "prompt tokens", "prompt tokens/s off", "prompt tokens/s on", "answers/s off", "answers/s on"),
        *("cached", "first token ms off", "first token ms on", "time off / on (median)", "min", "max"),
    )
    report.table(
        f"vLLM on the CPU, {shape.name}, blank, bf16: prefix caching off and on",
        columns,
        rows,
        f"{rounds} rounds a row, of {ANSWER} tokens an answer (greedy); every prompt of a round shares system prompt "
        "and context and ends in its own question; the first prompt of a round, so all of batch 1, finds nothing kept "
        "unless the system prompt fills a block of 128 tokens. "
        "First token: the server's own time from being scheduled, without its queue.",
    )


def _prompts(tier: Tier, batch: int, mark: str) -> list[Prompt]:
    text = f"Contributor {mark} grants a licence under the terms and conditions of this License. " * 5
    return [build(tier, f"Which licence is number {i}?", [text] * 4, []) for i in range(batch)]


def _round(model: VllmModel, prompts: list[Prompt]) -> Round:
    """The first prompt alone, as the first of a session would come, then the rest together."""
    model.count_tokens([segment.text for prompt in prompts for segment in prompt.question])  # tokenising is no part
    sampling = Sampling(max_tokens=ANSWER)
    began = time.perf_counter()
    answers = [model.generate(prompts[0], sampling, DEADLINE)]
    with ThreadPoolExecutor(max(1, len(prompts) - 1)) as pool:
        answers += pool.map(lambda prompt: model.generate(prompt, sampling, DEADLINE), prompts[1:])
    return Round(time.perf_counter() - began, answers)


def _row(batch: int, taken: dict[str, list[Round]]) -> list[float | int]:
    off, on = taken["off"], taken["on"]
    ratios = [a.seconds / b.seconds for a, b in zip(off, on, strict=True)]
    tokens = statistics.median(a.prompt_tokens for one in on for a in one.answers)
    seconds = {name: statistics.median(one.seconds for one in each) for name, each in taken.items()}
    return [
        *(batch, int(tokens), batch * tokens / seconds["off"], batch * tokens / seconds["on"]),
        *(batch / seconds["off"], batch / seconds["on"], statistics.median(one.cached for one in on)),
        *(1e3 * statistics.median(one.first_token_s for one in each) for each in (off, on)),
        *(statistics.median(ratios), min(ratios), max(ratios)),
    ]
