"""How fast the tiers answer here, at their true shapes with random weights, and our worker beside the library's loop.

    python -m pytest -m benchmark tests/benchmarks/inference/test_latency.py --keep FOLDER \
        --shapes 350m,700m,1.2b,2.6b --quantisations Q4_0 --rounds 5

Speed and memory do not depend on the values of the weights, so the files are made here (ruvllm.inference.blank); how
good the answers are cannot be measured so. A first token is a request of one token, from call to return, through the
worker's process; with a restored prefix all but the last 48 tokens of the prompt are the static part, whose state the
worker has kept. Threads are OpenMP's, waiting as RUVLLM_WAIT_POLICY says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from ruvllm.inference.blank import write_gguf
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.shapes import find_shape
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.inference.types import Prompt, Sampling, Segment
from ruvllm.settings import Settings, load_settings
from tests.benchmarks.memory.report import Report, conditions

pytestmark = pytest.mark.benchmark
SUFFIX, ANSWER = 48, 16  # tokens
PROMPTS = (64, 256, 512, 1024, 2048)
N_CTX = 4096 + 256
PATIENCE_S = 3600.0
GOAL_FIRST_S, GOAL_ANSWER_S = 0.2, 0.5  # of 350M Q4_0 with a restored prefix and 2 threads, on an idle machine
GOAL_OVERHEAD = 1.05  # of our worker beside the raw loop


@dataclass(frozen=True)
class Case:
    """One file with one number of threads."""

    tier: Tier
    path: Path
    threads: int

    @property
    def name(self) -> str:
        return f"{self.tier.name} {self.tier.quantisation}"


@pytest.fixture(scope="module")
def keep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--keep")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("latency")


@pytest.fixture(scope="module")
def settings(keep: Path) -> Settings:
    return load_settings(state_dir=keep / "state", n_ctx=N_CTX, deadline_s=PATIENCE_S)


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest, keep: Path) -> list[Case]:
    shapes = request.config.getoption("--shapes").split(",")
    kinds = request.config.getoption("--quantisations").split(",")
    threads = sorted({1, min(2, os.cpu_count() or 1)})
    return [Case(*_made(shape, kind, keep), count) for shape in shapes for kind in kinds for count in threads]


def _made(shape: str, quantisation: str, keep: Path) -> tuple[Tier, Path]:
    """A blank file at the tier's true shape; the catalogue's entry says the rest."""
    named = find_shape(shape)
    like = next(t for t in load_catalogue()["lfm2"] if t.name == named.name and t.quantisation == quantisation)
    path = keep / f"blank-{named.name}-{quantisation}.gguf"
    if not path.is_file():
        keep.mkdir(parents=True, exist_ok=True)
        write_gguf(path, named, quantisation=quantisation)
    return replace(like, file=path.name), path


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, keep: Path) -> Report:
    option = request.config.getoption
    name = f"latency-{option('--shapes')}-{option('--quantisations')}".replace(",", "+")
    made = Report(name, Path(option("--out") or keep / "results"))
    words = (w if "/" not in w or w.startswith("tests/") else "FOLDER" for w in sys.argv[1:])
    made.conditions = conditions(rounds=option("--rounds"), command=f"python -m pytest {' '.join(words)}")
    return made


# -- the worker beside the library


class Raw:
    """The raw loop in a process of its own."""

    def __init__(self, case: Case) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.inference.raw_loop", str(case.path), str(N_CTX)]
        self._process = subprocess.Popen(
            [*command, str(case.threads)],
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
        self._process.wait()


def test_our_worker_beside_the_librarys_loop(
    cases: list[Case], settings: Settings, report: Report, request: pytest.FixtureRequest
) -> None:
    """In turn, so that a busy machine slows both alike; the ratio is the median of the rounds' own."""
    rounds, rows = request.config.getoption("--rounds"), []
    for case in cases:
        began = time.perf_counter()
        with LlamaWorker(case.tier, case.path, settings, case.threads) as worker:
            loaded_s, after_load = time.perf_counter() - began, _rss(worker.pid)
            text, raw = Text(worker), Raw(case)
            ours, theirs = [], []
            for turn in range(rounds + 1):  # the first warms the file's pages
                theirs.append(raw.run(512, 32))
                made = worker.generate(text.prompt(512, 0, turn), _asking(33), PATIENCE_S)
                ours.append((made.prefill_s, made.decode_s))
            raw.close()
            at_work = _rss(worker.pid)
        rows.append(_beside(case, loaded_s, after_load, at_work, np.array(ours[1:]), np.array(theirs[1:])))
        worst = max(rows[-1][-2:])
        report.target(
            f"worker beside the raw loop, {case.name}, {case.threads} threads", "<= 1.05 x",
            f"prefill {rows[-1][-2]:.3f} x, decode {rows[-1][-1]:.3f} x", worst <= GOAL_OVERHEAD,
        )  # fmt: skip
    report.table(
        f"Load, memory and tokens a second, prompt 512, answer 32, N = {rounds}",
        ("model", "threads", "file MB", "load s", "RSS MB", "of which its own", "RSS MB at work", "prefill/s",
         "decode/s", "raw prefill/s", "raw decode/s", "prefill time / raw", "decode time / raw"),
        rows,
        "Prefill and decode: medians. `raw`: the same file, threads and context in llama.cpp's C loop without our code "
        "(`raw_loop.py`), in turn with ours. RSS is of the worker's process; the file is mapped and counts in it, `its "
        "own` is what is not.",
    )  # fmt: skip


def _beside(
    case: Case, loaded_s: float, after_load: tuple[float, float], at_work: tuple[float, float],
    ours: np.ndarray, theirs: np.ndarray,
) -> tuple[str | int | float, ...]:  # fmt: skip
    prefill, decode = np.median(ours, axis=0)
    raw_prefill, raw_decode = np.median(theirs, axis=0)
    ratios = np.median(ours / theirs, axis=0)
    size = case.path.stat().st_size / 1e6
    return (
        case.name, case.threads, round(size), round(loaded_s, 2), round(after_load[0]), round(after_load[1]),
        round(at_work[0]), float(512 / prefill), float(32 / decode), float(512 / raw_prefill), float(32 / raw_decode),
        round(float(ratios[0]), 3), round(float(ratios[1]), 3),
    )  # fmt: skip


def _rss(pid: int) -> tuple[float, float]:
    """MB: all, and without what is mapped from files."""
    memory = psutil.Process(pid).memory_info()
    return memory.rss / 1e6, (memory.rss - memory.shared) / 1e6


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


def test_first_token_and_answer(
    cases: list[Case], settings: Settings, report: Report, request: pytest.FixtureRequest
) -> None:
    rounds, rows = request.config.getoption("--rounds"), []
    for case in cases:
        with LlamaWorker(case.tier, case.path, settings, case.threads) as worker:
            text = Text(worker)
            for tokens in PROMPTS:
                for kept in (0, tokens - SUFFIX):
                    rows.append(_timed(case, worker, text, tokens, kept, rounds))
                    report.tables = [table for table in report.tables if "First token" not in table.title]
                    report.table(f"First token and an answer of {ANSWER} tokens, N = {rounds}", COLUMNS, rows, NOTE)
    _goals(report, rows)


COLUMNS = (
    "model", "threads", "prompt tokens", "of these restored", "first token ms", "answer ms", "answer p99 or max ms",
    "load",
)  # fmt: skip
NOTE = "Medians, from the caller's side of the worker's socket. `restored`: as the worker counts cached tokens."


def _timed(
    case: Case, worker: LlamaWorker, text: Text, tokens: int, kept: int, rounds: int
) -> tuple[str | int | float, ...]:
    worker.generate(text.prompt(tokens, kept, 10_000 + tokens), _asking(1), PATIENCE_S)  # keeps the static part
    first, whole, cached, asked = [], [], 0, 0
    for turn in range(rounds):
        began = time.perf_counter()
        worker.generate(text.prompt(tokens, kept, 100 + turn), _asking(1), PATIENCE_S)
        first.append(time.perf_counter() - began)
        began = time.perf_counter()
        made = worker.generate(text.prompt(tokens, kept, 5000 + turn), _asking(ANSWER), PATIENCE_S)
        seconds = time.perf_counter() - began
        whole.append(seconds + made.decode_s * (ANSWER / made.completion_tokens - 1))  # a stop came early: as if not
        cached, asked = made.cached_tokens, made.prompt_tokens
    return (
        case.name, case.threads, asked, cached, float(np.median(first) * 1e3), float(np.median(whole) * 1e3),
        float(max(whole) * 1e3), round(os.getloadavg()[0], 1),
    )  # fmt: skip


def _goals(report: Report, rows: list[tuple[str | int | float, ...]]) -> None:
    """350M at Q4_0, 2 threads, restored prefix: the first token within 200 ms, 16 tokens within 500."""
    for row in rows:
        if row[0] == "lfm2-350m Q4_0" and row[1] == 2 and row[3]:
            first, whole = float(row[4]), float(row[5])
            what = f"350M Q4_0, 2 threads, {row[3]:,} of {row[2]:,} tokens restored"
            report.target(f"{what}: first token", "<= 200 ms", f"{first:.0f} ms", first <= GOAL_FIRST_S * 1e3)
            report.target(f"{what}: {ANSWER} tokens", "<= 500 ms", f"{whole:.0f} ms", whole <= GOAL_ANSWER_S * 1e3)
