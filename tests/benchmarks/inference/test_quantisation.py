"""What a quantisation saves: speed relative to F16, and the resident set beside sizing.py's arithmetic.

    python -m pytest -m benchmark tests/benchmarks/inference/test_quantisation.py --keep FOLDER --shapes 350m --rounds 5

One thread, CPU seconds, quantisations in turn, so that other work on the machine slows all of them alike. The files
are made here and kept (as test_latency.py keeps them); what quantisations cost in quality cannot be measured so.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ruvllm.inference.blank import write_ggufs
from ruvllm.inference.engine import Engine
from ruvllm.inference.shapes import Shape, find_shape
from ruvllm.inference.sizing import QUANTISATIONS, size
from tests.benchmarks.memory.report import Report, conditions

pytestmark = pytest.mark.benchmark
PROMPT, ANSWER, N_CTX = 128, 16, 2048

# A process as the worker's, its context filled but for a few tokens.
_FILLED = f"""
import json, sys
from pathlib import Path
from ruvllm.inference.engine import Engine
engine = Engine(Path(sys.argv[1]), {N_CTX})
engine.evaluate([300 + i % 500 for i in range({N_CTX} - 8)])
print(json.dumps(int(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmRSS"].split()[0]) * 1024))
"""


@pytest.fixture(scope="module", params=["350m", "700m", "1.2b", "2.6b"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, dict[str, Path]]:
    if request.param not in request.config.getoption("--shapes").split(","):
        pytest.skip("not among --shapes")
    given, shape = request.config.getoption("--keep"), find_shape(request.param)
    folder = Path(given).absolute() if given else tmp_path_factory.mktemp("quantisations")
    paths = {q: folder / f"blank-{shape.name}-{q}.gguf" for q in QUANTISATIONS}
    missing = [q for q, path in paths.items() if not path.is_file()]
    if missing:
        write_ggufs(folder, shape, missing)
    return shape, paths


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, files: tuple[Shape, dict[str, Path]]) -> Report:
    shape, paths = files
    out = Path(request.config.getoption("--out") or paths["F16"].parent / "results").absolute()
    made = Report(f"quantisation-{shape.name}", out)
    made.conditions = conditions(rounds=request.config.getoption("--rounds"), threads=1)
    return made


def test_speed(files: tuple[Shape, dict[str, Path]], report: Report, request: pytest.FixtureRequest) -> None:
    shape, paths = files
    rounds = request.config.getoption("--rounds")
    seconds: dict[str, list[tuple[float, float]]] = {q: [] for q in QUANTISATIONS}
    engines = {q: _opened(path) for q, path in paths.items()}
    for number in range(rounds):
        for quantisation, engine in engines.items():
            seconds[quantisation].append(_once(engine, number))
    for engine in engines.values():
        engine.close()
    medians = {q: tuple(statistics.median(column) for column in zip(*rows, strict=True)) for q, rows in seconds.items()}
    base = medians["F16"]
    report.table(
        f"{shape.name}, one thread, tokens a CPU second",
        ("quantisation", f"prompt of {PROMPT}", "decode", "prompt, F16 = 1", "decode, F16 = 1"),
        [
            (q, round(PROMPT / p), round(ANSWER / d, 1), round(base[0] / p, 2), round(base[1] / d, 2))
            for q, (p, d) in medians.items()
        ],
        f"Medians of {rounds} rounds in which every quantisation had its turn.",
    )


def _opened(path: Path) -> Engine:
    engine = Engine(path, PROMPT + ANSWER)
    engine.set_threads(1, 1)
    engine.evaluate(list(range(300, 300 + PROMPT)))  # the file is read from disk here
    return engine


def _once(engine: Engine, number: int) -> tuple[float, float]:
    tokens = [300 + (7919 * (number + 1) * i) % 60_000 for i in range(PROMPT + ANSWER)]
    engine.clear()
    prompt = _cpu(lambda: engine.evaluate(tokens[:PROMPT]))
    return prompt, _cpu(lambda: [engine.evaluate([token]) for token in tokens[PROMPT:]])


def _cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def test_memory(files: tuple[Shape, dict[str, Path]], report: Report) -> None:
    shape, paths = files
    rows = [(q, *_resident(shape, q, path)) for q, path in paths.items()]
    report.table(
        f"{shape.name}, resident set with {N_CTX} tokens of context in use, MiB",
        ("quantisation", "file", "measured", "arithmetic", "measured / arithmetic"),
        rows,
        "A process with the engine and nothing else. The arithmetic counts a merge for every token of the vocabulary,"
        " as the real models have; a blank file has few: 7 MiB too much.",
    )
    worst = max(abs(1 - row[4]) for row in rows)
    report.target("arithmetic of memory", "within 5 % of the resident set", f"at most {worst:.1%} off", worst <= 0.05)


def _resident(shape: Shape, quantisation: str, path: Path) -> tuple[int, int, int, float]:
    done = subprocess.run([sys.executable, "-c", _FILLED, str(path)], capture_output=True, text=True, check=True)
    measured, expected = json.loads(done.stdout), size(shape, quantisation, N_CTX).resident
    mib = [round(count / 2**20) for count in (path.stat().st_size, measured, expected)]
    return mib[0], mib[1], mib[2], round(measured / expected, 3)
