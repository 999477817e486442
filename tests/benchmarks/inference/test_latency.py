"""How fast the tiers answer here, at their true shapes with random weights, and our worker beside the library's loop.

    python -m pytest -m benchmark tests/benchmarks/inference/test_latency.py --keep FOLDER -s \
        --shapes 350m,700m,1.2b,2.6b --quantisations Q4_0,Q4_K_M,Q5_K_M,Q8_0,F16 --rounds 3
    python -m tests.benchmarks.inference.latency_page FOLDER docs/latency.md

Every tier at Q4_0; the 350M and the 2.6B at the other quantisations too, with a prompt of 512 tokens. Every cell is
kept in FOLDER/cells, so a killed run goes on where it was; `-s` shows how long the rest will take.

Speed and memory do not depend on the values of the weights, so the files are made here (ruvllm.inference.blank); how
good the answers are cannot be measured so. An answer is timed from call to return, through the worker's process; the
first token is that time less what the worker says the tokens after it took. With a restored prefix all but the last 48
tokens of the prompt are the static part, whose state the worker has kept. Context bins are measured with all threads:
so the product answers. Threads are OpenMP's, waiting as RUVLLM_WAIT_POLICY says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ruvllm.inference.blank import write_gguf
from ruvllm.inference.deadlines import AROUND
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.shapes import find_shape
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.inference.types import BINS, Prompt, Sampling, Segment
from ruvllm.settings import Settings, load_settings
from tests.benchmarks.inference import cells
from tests.benchmarks.inference.cells import Cells, Name

pytestmark = pytest.mark.benchmark
SUFFIX, ANSWER = 48, 16  # tokens
BIN_ANSWER = 48  # tokens of an answer to a question with a whole context bin
N_CTX = 4096 + 256
PATIENCE_S = 3600.0
_LOADS_S = 5.0  # for the estimate of a run: a start of a worker, and of the raw loop


@dataclass(frozen=True)
class Case:
    """One file with one number of threads."""

    shape: str
    tier: Tier
    path: Path
    threads: int

    @property
    def name(self) -> Name:
        return (self.tier.name, self.tier.quantisation, self.threads)


@pytest.fixture(scope="module")
def keep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--keep")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("latency")


@pytest.fixture(scope="module")
def kept(request: pytest.FixtureRequest, keep: Path) -> Cells:
    return Cells(keep / "cells", request.config.getoption("--rounds"))


@pytest.fixture(scope="module")
def settings(keep: Path) -> Settings:
    return load_settings(state_dir=keep / "state", n_ctx=N_CTX, deadline_s=PATIENCE_S)


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest, keep: Path) -> list[Case]:
    option = request.config.getoption
    pairs = cells.models(option("--shapes").split(","), option("--quantisations").split(","))
    threads = sorted({1, min(2, os.cpu_count() or 1)})
    return [Case(shape, *_named(shape, kind, keep), count) for shape, kind in pairs for count in threads]


def _named(shape: str, quantisation: str, keep: Path) -> tuple[Tier, Path]:
    named = find_shape(shape)
    like = next(t for t in load_catalogue()["lfm2"] if t.name == named.name and t.quantisation == quantisation)
    path = keep / f"blank-{named.name}-{quantisation}.gguf"
    return replace(like, file=path.name), path


@contextmanager
def _worker(case: Case, settings: Settings) -> Iterator[LlamaWorker]:
    """On a blank file at the tier's true shape."""
    _made(case)
    with LlamaWorker(case.tier, case.path, settings, case.threads) as worker:
        yield worker


def _made(case: Case) -> None:
    """The blank file, where it is not there yet."""
    if not case.path.is_file():
        case.path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(case.path, find_shape(case.shape), quantisation=case.tier.quantisation)


def _say_how_long(what: str, kept: Cells, wanted: list[tuple[Name, Case, int, int]]) -> None:
    """`wanted`: name, case, and the tokens of prompts and answers that the cell takes."""
    missing = [entry for entry in wanted if kept.missing(entry[0])]
    seconds = sum(
        cells.estimate_s(case.shape, case.tier.quantisation, prefill, decode, case.threads)
        for _, case, prefill, decode in missing
    )
    seconds += _LOADS_S * len({case.name for _, case, _, _ in missing})
    print(f"\n{what}: {len(missing)} of {len(wanted)} cells to measure, {cells.told(seconds)}", flush=True)


# -- the worker beside the library


class Raw:
    """The raw loop in a process of its own."""

    def __init__(self, case: Case, plain: bool = False) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.inference.raw_loop", str(case.path), str(N_CTX)]
        self._process = subprocess.Popen(
            [*command, str(case.threads), *(["plain"] if plain else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": os.environ.get("RUVLLM_WAIT_POLICY", "passive")},
        )
        assert self._read() == {"ready": True}

    def run(self, prompt: int, answer: int) -> tuple[float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
        self._process.stdin.flush()
        took = self._read()
        return took["prefill_s"], took["decode_s"]

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()  # closes its pipes too


def test_our_worker_beside_the_librarys_loop(cases: list[Case], settings: Settings, kept: Cells) -> None:
    """In turn, so that a busy machine slows both alike; the ratio is the median of the rounds' own."""
    turns = kept.n + 1
    wanted = [(("speed", *case.name), case, 2 * turns * 512, 2 * turns * 32) for case in cases]
    _say_how_long("worker beside the raw loop", kept, wanted)
    for name, case, _, _ in wanted:
        kept.of(name, lambda case=case: _beside(case, settings, kept.n))


def _beside(case: Case, settings: Settings, rounds: int) -> dict[str, Any]:
    began = time.perf_counter()
    with _worker(case, settings) as worker:
        loaded_s, after_load = time.perf_counter() - began, _rss(worker.pid)
        text, raw = Text(worker), Raw(case)
        ours, theirs = [], []
        for turn in range(rounds + 1):  # the first warms the file's pages
            theirs.append(raw.run(512, 32))
            made = worker.generate(text.prompt(512, 0, turn), _asking(33), PATIENCE_S)
            ours.append((made.prefill_s / made.prompt_tokens, made.decode_s / (made.completion_tokens - 1)))
        raw.close()
        at_work = _rss(worker.pid)
    mine, library = np.array(ours[1:]), np.array(theirs[1:]) / [512, 32]  # (rounds, 2) seconds a token
    prefill, decode = np.median(mine, axis=0)
    raw_prefill, raw_decode = np.median(library, axis=0)
    ratios = np.median(mine / library, axis=0)
    return {
        "file_mb": case.path.stat().st_size / 1e6,
        "loaded_s": loaded_s,
        "rss_mb": after_load[0],
        "own_mb": after_load[1],
        "work_mb": at_work[0],
        "prefill_per_s": 1 / prefill,
        "decode_per_s": 1 / decode,
        "raw_prefill_per_s": 1 / raw_prefill,
        "raw_decode_per_s": 1 / raw_decode,
        "prefill_ratio": float(ratios[0]),
        "decode_ratio": float(ratios[1]),
    }


def _rss(pid: int) -> tuple[float, float]:
    """MB: all, and without what is mapped from files."""
    memory = psutil.Process(pid).memory_info()
    return memory.rss / 1e6, (memory.rss - memory.shared) / 1e6


def test_weights_rearranged_for_the_processor(cases: list[Case], kept: Cells) -> None:
    """llama.cpp's own loop with weights as in the file and as the processor likes them (AMX, wider blocks), in turn."""
    own = [case for case in cases if case.shape == "350m" and case.threads == 1]
    for case in own:
        kept.of(("rearranged", *case.name), lambda case=case: _rearranged(case, kept.n))


def _rearranged(case: Case, rounds: int) -> dict[str, Any]:
    _made(case)
    loops = (Raw(case, plain=True), Raw(case))
    took = np.array([[loop.run(256, 16) for loop in loops] for _ in range(rounds + 1)])[1:]  # (rounds, 2, 2) seconds
    for loop in loops:
        loop.close()
    (plain_prefill, plain_decode), (prefill, decode) = np.array([256, 16]) / np.median(took, axis=0)
    return {
        "plain_prefill_per_s": float(plain_prefill),
        "prefill_per_s": float(prefill),
        "plain_decode_per_s": float(plain_decode),
        "decode_per_s": float(decode),
    }


# -- first token and whole answer


class Text:
    """Prompts of a wanted number of tokens, made of words that the model's own tokeniser counts."""

    def __init__(self, worker: LlamaWorker) -> None:
        [one, many] = worker.count_tokens([" harbour", " harbour" * 33])
        self._a_word, self._first = (many - one) / 32, one

    def prompt(self, tokens: int, kept: int, salt: int) -> Prompt:
        """`kept` tokens of it are static; `salt` makes what is asked another text, so that nothing else is reused."""
        static = (Segment(self._words(kept), True),) if kept else ()
        return Prompt(static, (), (), (Segment(f"{salt}" + self._words(tokens - kept - 2), False),))

    def _words(self, tokens: int) -> str:
        return " harbour" * max(1, round((tokens - self._first) / self._a_word + 1))


def _asking(tokens: int) -> Sampling:
    return Sampling(max_tokens=tokens)


def test_first_token_and_answer(cases: list[Case], settings: Settings, kept: Cells) -> None:
    wanted = [
        (("first", *case.name, tokens, how), case, *_taken(tokens, how, kept.n))
        for case in cases
        for tokens in cells.prompts(case.tier.quantisation)
        for how in ("whole", "restored")
    ]
    _say_how_long("first token and answer", kept, wanted)
    for case in cases:
        own = [name for name, other, _, _ in wanted if other is case]
        _measured(case, settings, kept, own, _timed)


def _taken(tokens: int, how: str, rounds: int) -> tuple[int, int]:
    """Tokens of prompts and of answers."""
    return (rounds * tokens if how == "whole" else tokens + rounds * SUFFIX), rounds * ANSWER


Measure = Callable[[Case, LlamaWorker, Text, Name, int], dict[str, Any]]


def _measured(case: Case, settings: Settings, kept: Cells, names: list[Name], measure: Measure) -> None:
    """All cells of one file, with one start of its worker; none where nothing is missing."""
    missing = [name for name in names if kept.missing(name)]
    if not missing:
        return
    with _worker(case, settings) as worker:
        text = Text(worker)
        for name in missing:
            kept.of(name, lambda name=name: measure(case, worker, text, name, kept.n))


def _timed(case: Case, worker: LlamaWorker, text: Text, name: Name, rounds: int) -> dict[str, Any]:
    tokens, how = int(name[-2]), name[-1]
    held = tokens - SUFFIX if how == "restored" else 0
    if held:
        worker.generate(text.prompt(tokens, held, 10_000 + tokens), _asking(1), PATIENCE_S)  # keeps the static part
    first, whole, made = [], [], None
    for turn in range(rounds):
        began = time.perf_counter()
        made = worker.generate(text.prompt(tokens, held, 5000 + turn), _asking(ANSWER), PATIENCE_S)
        seconds = time.perf_counter() - began
        first.append(seconds - made.decode_s)
        whole.append(first[-1] + made.decode_s * (ANSWER - 1) / max(1, made.completion_tokens - 1))
    assert made is not None
    return {
        "prompt_tokens": made.prompt_tokens,
        "cached_tokens": made.cached_tokens,
        "first_ms": float(np.median(first) * 1e3),
        "answer_ms": float(np.median(whole) * 1e3),
        "slowest_ms": float(max(whole) * 1e3),
    }


# -- a question with a whole context bin, nothing of it kept


def test_every_context_bin_uncached(cases: list[Case], settings: Settings, kept: Cells) -> None:
    """A bin's tokens of context and what frames a question, then an answer of 48 tokens; the static part is kept."""
    most = max(case.threads for case in cases)
    own = [case for case in cases if case.tier.quantisation == "Q4_0" and case.threads == most]
    wanted = [
        (("bin", *case.name, context), case, kept.n * (context + AROUND), kept.n * BIN_ANSWER)
        for case in own
        for context in BINS
    ]
    _say_how_long("context bins, uncached", kept, wanted)
    for case in own:
        _measured(case, settings, kept, [name for name, other, _, _ in wanted if other is case], _one_bin)


def _one_bin(case: Case, worker: LlamaWorker, text: Text, name: Name, rounds: int) -> dict[str, Any]:
    context, seconds, made = int(name[-1]), [], None
    for turn in range(rounds):
        began = time.perf_counter()
        made = worker.generate(text.prompt(context + AROUND, 0, 700 + turn), _asking(BIN_ANSWER), PATIENCE_S)
        took = time.perf_counter() - began
        seconds.append(took + made.decode_s * (BIN_ANSWER / made.completion_tokens - 1))
    assert made is not None
    return {"prompt_tokens": made.prompt_tokens, "answer_ms": float(np.median(seconds) * 1e3)}
