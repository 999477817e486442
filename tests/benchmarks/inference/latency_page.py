"""The page of latencies, from measured cells: which target holds on which hardware, and arithmetic for the others.

    python -m tests.benchmarks.inference.latency_page FOLDER docs/latency.md

FOLDER is what test_latency.py kept (`FOLDER/cells`, one JSON file a cell) with whatever other inference benchmarks left
in `FOLDER/results`. A cell that nobody measured says so; no figure is typed by hand. Knows nothing of how anything is
measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ruvllm.inference.deadlines import AROUND
from ruvllm.inference.shapes import Shape, find_shape
from ruvllm.inference.sizing import QUANTISATIONS, weight_bytes
from ruvllm.inference.types import BINS
from tests.benchmarks.inference import cells
from tests.benchmarks.inference.cells import Cells, Name
from tests.benchmarks.memory.report import VERDICTS, Cell, _replace, _table

NOT = "not measured"
_RATIO = "plain s / drafted s (quartiles)"  # of test_speculation.py
ANSWER, SUFFIX = 16, 48  # tokens, as test_latency.py asks
_GOAL_FIRST_MS, _GOAL_ANSWER_MS, _GOAL_RATIO = 200.0, 500.0, 1.05
# NFR-001 of the specification: median and 99th percentile in ms, requests a second, memory in MB.
TIERS = {"A, server": (200, 1000, 100, 16_000), "B, edge": (500, 2000, 20, 4_000), "C, mobile": (800, 5000, 5, 1_000)}
_GPU_BANDWIDTH = 4.8e12  # bytes a second of an H200's memory, its maker's figure
_GPU_GOAL_MS = 100.0


def page(folder: Path) -> str:
    kept = Cells(folder / "cells")
    parts = [
        _INTRODUCTION.strip(),
        _conditions(kept),
        _goals(kept),
        _speed(kept),
        _first(kept),
        _bins(kept),
        _whole(kept),
    ]
    parts += [_deadlines(kept), _graphics_card(), _table71(kept, folder / "results")]
    return "\n\n".join(parts) + "\n"


def _conditions(kept: Cells) -> str:
    all_cells = kept.all()
    if not all_cells:
        return "Nothing was measured yet."
    made = [cell["conditions"] for cell in all_cells]
    loads, counts = [cell["load"] for cell in all_cells], sorted({cell["n"] for cell in all_cells})
    return (
        f"{len(all_cells)} cells, {min(m['date'] for m in made)} to {max(m['date'] for m in made)}, on"
        f" {made[0]['processor']}, {made[0]['memory']}, {made[0]['system']}; revisions"
        f" {', '.join(sorted({m['revision'] for m in made}))}; N = {', '.join(map(str, counts))} a cell; load when a"
        f" cell was begun {min(loads):.1f} to {max(loads):.1f}."
    )


def _models() -> list[tuple[Shape, str, int]]:
    """Shape, quantisation, threads."""
    return [(find_shape(shape), kind, threads) for shape, kind in cells.whole_grid() for threads in (1, 2)]


def _row(kept: Cells, name: Name, columns: Sequence[str]) -> list[Cell]:
    cell = kept.known(name)
    return [NOT, *[None] * (len(columns) - 1)] if cell is None else [_rounded(cell[column]) for column in columns]


def _rounded(value: Any) -> Cell:
    return float(f"{value:.4g}") if isinstance(value, float) else value


# -- targets


def _goals(kept: Cells) -> str:
    rows = [*_restored_goals(kept), *_ratio_goals(kept), *_nfr(kept)]
    return _table("Targets", ("what", "wanted", "measured", "verdict"), rows, _GOALS_NOTE)


def _restored_goals(kept: Cells) -> list[tuple[Cell, ...]]:
    rows = []
    for tokens in cells.PROMPTS[1:]:
        cell = kept.known(("first", "lfm2-350m", "Q4_0", 2, tokens, "restored"))
        what = f"350M Q4_0, 2 threads, all but {SUFFIX} of {tokens:,} prompt tokens restored"
        rows.append(_goal(f"{what}: first token", _GOAL_FIRST_MS, cell, "first_ms"))
        rows.append(_goal(f"{what}: {ANSWER} tokens", _GOAL_ANSWER_MS, cell, "answer_ms"))
    return rows


def _goal(what: str, wanted: float, cell: dict[str, Any] | None, column: str) -> tuple[Cell, ...]:
    if cell is None:
        return what, f"<= {wanted:.0f} ms", NOT, VERDICTS[None]
    return what, f"<= {wanted:.0f} ms", f"{cell[column]:.0f} ms, load {cell['load']}", VERDICTS[cell[column] <= wanted]


def _ratio_goals(kept: Cells) -> list[tuple[Cell, ...]]:
    rows = []
    for shape, kind, threads in _models():
        cell = kept.known(("speed", shape.name, kind, threads))
        if cell is not None:
            worst = max(cell["prefill_ratio"], cell["decode_ratio"])
            got = f"prefill {cell['prefill_ratio']:.3f} x, decode {cell['decode_ratio']:.3f} x, load {cell['load']}"
            what = f"worker beside the raw loop, {shape.name} {kind}, {threads} threads"
            rows.append((what, f"<= {_GOAL_RATIO} x", got, VERDICTS[worst <= _GOAL_RATIO]))
    return rows


def _nfr(kept: Cells) -> list[tuple[Cell, ...]]:
    """A row a tier and shape: the four figures of NFR-001, each with its own verdict."""
    rows: list[tuple[Cell, ...]] = []
    for tier, (p50, p99, rate, memory) in TIERS.items():
        for shape in map(find_shape, cells.SHAPES):
            what = f"NFR-001 tier {tier}: {shape.name} Q4_0 over HTTP, bin 256, {ANSWER} tokens"
            wanted = f"p50 < {p50} ms, p99 < {p99:,} ms, {rate}/s, < {memory:,} MB"
            cell = kept.known(("http", shape.name, "Q4_0"))
            if cell is None:
                rows.append((what, wanted, NOT, VERDICTS[None]))
                continue
            met = {
                f"p50 {cell['p50_ms']:,.0f} ms": cell["p50_ms"] < p50,
                f"p99 {cell['p99_ms']:,.0f} ms": cell["p99_ms"] < p99,
                f"{cell['answered_per_s']:.2f}/s": cell["answered_per_s"] >= rate,
                f"{cell['tree_mb']:,.0f} MB": cell["tree_mb"] < memory,
            }
            got = ", ".join(f"{figure} ({'met' if good else 'missed'})" for figure, good in met.items())
            rows.append((what, wanted, got, VERDICTS[all(met.values())]))
    return rows


_GOALS_NOTE = (
    "A load beside a figure that is not near 0 means that other work had the cores too: that verdict is of that moment."
    " NFR-001's rows are whole requests (test_whole_path.py): a question by itself for p50 and p99, five a second"
    " offered for what is answered. By arithmetic, what a row lacks: the machine answers one request of a model at a"
    " time, so its rate is at most one by the seconds of an answer; 100 a second is a server's work with batching (vLLM"
    " on a graphics card), and the times of the bigger shapes want memory bandwidth and operations as the tables below."
)


# -- measured tables


def _speed(kept: Cells) -> str:
    columns = (
        "file_mb", "loaded_s", "rss_mb", "own_mb", "work_mb", "prefill_per_s", "decode_per_s", "raw_prefill_per_s",
        "raw_decode_per_s", "prefill_ratio", "decode_ratio", "load",
    )  # fmt: skip
    rows = [(s.name, q, t, *_row(kept, ("speed", s.name, q, t), columns)) for s, q, t in _models()]
    head = (
        "model", "quantisation", "threads", "file MB", "load s", "RSS MB", "its own", "RSS MB at work", "prefill/s",
        "decode/s", "raw prefill/s", "raw decode/s", "prefill time / raw", "decode time / raw", "load",
    )  # fmt: skip
    return _table(
        "Load, memory and tokens a second; prompt 512, answer 32",
        head,
        rows,
        "Medians. `raw`: the same file, threads and context in llama.cpp's C loop without our code (`raw_loop.py`), in "
        "turn with ours. RSS is of the worker's process; the file is mapped and counts in it, `its own` is the rest.",
    )


def _first(kept: Cells) -> str:
    columns = ("prompt_tokens", "cached_tokens", "first_ms", "answer_ms", "slowest_ms", "load")
    rows = [
        (
            shape.name,
            kind,
            threads,
            tokens,
            how,
            *_row(kept, ("first", shape.name, kind, threads, tokens, how), columns),
        )
        for shape, kind, threads in _models()
        for tokens in cells.prompts(kind)
        for how in ("whole", "restored")
    ]
    head = ("model", "quantisation", "threads", "asked", "prefix", "prompt tokens", "restored", "first token ms")
    return _table(
        f"First token and an answer of {ANSWER} tokens",
        (*head, "answer ms", "slowest ms", "load"),
        rows,
        "Medians, from the caller's side of the worker's socket. `restored`: as the worker counts cached tokens.",
    )


def _bins(kept: Cells) -> str:
    columns = ("prompt_tokens", "answer_ms", "load")
    rows = [
        (shape.name, threads, context, *_row(kept, ("bin", shape.name, kind, threads, context), columns))
        for shape, kind, threads in _models()
        if kind == "Q4_0" and threads == 2
        for context in BINS
    ]
    return _table(
        "A question with a whole context bin, nothing of it kept, and an answer of 48 tokens; Q4_0",
        ("model", "threads", "bin", "prompt tokens", "answer ms", "load"),
        rows,
        "The model's part of a request, with all threads; docs/first-light.md has the gateway's own.",
    )


def _rearranged(kept: Cells) -> str:
    columns = ("plain_prefill_per_s", "prefill_per_s", "plain_decode_per_s", "decode_per_s", "load")
    rows = [("lfm2-350m", kind, *_row(kept, ("rearranged", "lfm2-350m", kind, 1), columns)) for kind in QUANTISATIONS]
    return _table(
        "Weights as in the file, and rearranged for this processor; llama.cpp's own loop, one thread",
        ("model", "quantisation", "prefill/s as is", "prefill/s", "decode/s as is", "decode/s", "load"),
        rows,
        "Prompt 256, answer 16, in turn. On a processor with AMX that is AMX, which GCC 12 compiles wrongly unless "
        "infra/llama mends it; the price is memory (ruvllm models size).",
    )


def _whole(kept: Cells) -> str:
    columns = ("p50_ms", "p99_ms", "own_p50_ms", "answered_per_s", "refused", "loaded_p50_ms", "loaded_p99_ms",
               "tree_mb", "n", "load")  # fmt: skip
    rows = [(shape.name, *_row(kept, ("http", shape.name, "Q4_0"), columns)) for shape in map(find_shape, cells.SHAPES)]
    head = ("model", "p50 ms", "p99 ms", "gateway's own p50 ms", "answered/s of 5", "refused", "p50 ms then")
    return _table(
        f"Whole requests over HTTP; Q4_0, bin 256, an answer of {ANSWER} tokens, all threads",
        (*head, "p99 ms then", "MB, gateway and model", "N", "load"),
        rows,
        "p99 of so few is close to the slowest. `then`: of what was answered while five a second were offered.",
    )


# -- arithmetic


def _deadlines(kept: Cells) -> str:
    """What each bin takes by the measured pace, as ruvllm/inference/deadlines.py masks (tier, bin) pairs with it."""
    rows = []
    for shape in map(find_shape, cells.SHAPES):
        cell = kept.known(("speed", shape.name, "Q4_0", 2))
        seconds = [NOT] * len(BINS) if cell is None else [f"{_predicted_s(cell, context):.1f}" for context in BINS]
        rows.append((shape.name, *seconds))
    return _table(
        "Seconds that a bin takes by arithmetic: measured pace, Q4_0, 2 threads, 48 tokens",
        ("model", *(f"bin {context}" for context in BINS)),
        rows,
        "(bin + 96) / prefill rate + 48 / decode rate. A pair that takes longer than a request's deadline is masked.",
    )


def _predicted_s(cell: dict[str, Any], context: int) -> float:
    return float((context + AROUND) / cell["prefill_per_s"] + 48 / cell["decode_per_s"])


def _graphics_card() -> str:
    """A token of a batch of one reads every weight once: the least time there is."""
    rows: list[tuple[Cell, ...]] = []
    for shape in map(find_shape, cells.SHAPES):
        for what, size in (("bf16", weight_bytes(shape, "F16")), ("8-bit", weight_bytes(shape, "Q8_0"))):
            each = size / _GPU_BANDWIDTH * 1e3
            rows.append((shape.name, what, _rounded(size / 1e9), _rounded(each), _rounded(ANSWER * each), NOT))
    return _table(
        f"On a graphics card: least ms by arithmetic, against < {_GPU_GOAL_MS:.0f} ms",
        ("model", "weights", "GB", "ms a token", f"ms for {ANSWER} tokens", "measured"),
        rows,
        "Weights by 4.8 TB/s, an H200's memory: a bound that says the target is possible there, not that it was met. "
        "No card was at hand.",
    )


# -- table 7.1 of the specification


def _table71(kept: Cells, results: Path) -> str:
    rows: list[tuple[Cell, ...]] = [
        ("model selection", "2-4x", _selection(kept), "see docs/router.md for what it costs", "on"),
        ("KV cache reuse", "1.5-2x", _reuse(kept), "none: test_restore.py compares logits", "on"),
    ]
    rows += [
        (f"{kind} quantisation", "2-3x" if kind == "Q4_0" else "-", _by_f16(kept, kind), "needs real weights", "on")
        for kind in QUANTISATIONS
        if kind != "F16"
    ]
    rows.append(("prompt lookup", "1.3-1.5x", _lookups(results), "none where exact", "off"))
    rows.append(("draft model", "1.3-1.5x", _drafted(kept), "none", "off: LFM2's state cannot be rolled back"))
    rows.append(("continuous batching", "2-4x", "docs/vllm-speed.md", "none: vLLM's own", "with vLLM"))
    return _table(
        "Table 7.1 of the specification, row by row",
        ("optimisation", "promised", "measured", "quality", "here"),
        rows,
        "350M's shape, 2 threads. Quantisations: 512 tokens of prompt and 32 of answer beside F16. Reuse: an answer of "
        "16 tokens behind 1,024 of prompt, all but 48 restored, beside evaluating all. Selection: 350M beside 2.6B, "
        "bin 256. Draft model: an upper bound by arithmetic, the 350M drafting 4 tokens for the 2.6B of which each is "
        "accepted with probability 0.7 (Leviathan et al. 2023, theorem 3.8), were verifying five tokens as cheap as "
        "making one; a rejected draft would need a state from before it, and LFM2's short convolutions keep none.",
    )


def _ratio(over: dict[str, Any] | None, under: dict[str, Any] | None, of: Callable[[dict[str, Any]], float]) -> str:
    return NOT if over is None or under is None else f"{of(over) / of(under):.2f}x"


def _selection(kept: Cells) -> str:
    big, small = (kept.known(("bin", name, "Q4_0", 2, 256)) for name in ("lfm2-2.6b", "lfm2-350m"))
    return _ratio(big, small, lambda cell: cell["answer_ms"])


def _drafted(kept: Cells, drafted: int = 4, accepted: float = 0.7) -> str:
    small, big = (kept.known(("speed", name, "Q4_0", 2)) for name in ("lfm2-350m", "lfm2-2.6b"))
    if small is None or big is None:
        return NOT
    cost = big["decode_per_s"] / small["decode_per_s"]  # of a drafted token, in tokens of the big model
    tokens = (1 - accepted ** (drafted + 1)) / (1 - accepted)
    return f"at most {tokens / (drafted * cost + 1):.2f}x, by arithmetic"


def _reuse(kept: Cells) -> str:
    whole, restored = (kept.known(("first", "lfm2-350m", "Q4_0", 2, 1024, how)) for how in ("whole", "restored"))
    return _ratio(whole, restored, lambda cell: cell["answer_ms"])


def _by_f16(kept: Cells, kind: str) -> str:
    base, this = (kept.known(("speed", "lfm2-350m", q, 2)) for q in ("F16", kind))
    return _ratio(base, this, lambda cell: 512 / cell["prefill_per_s"] + 32 / cell["decode_per_s"])


def _lookups(results: Path) -> str:
    """Prompt lookup's speed-up (quartiles) by model and drafted tokens, from what test_speculation.py left."""
    wholes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("speculation-*.json"))]
    rows = [
        dict(zip(table["columns"], row, strict=True))
        for whole in wholes for table in whole["tables"] if _RATIO in table["columns"] for row in table["rows"]
    ]  # fmt: skip
    said = [f"{row[_RATIO]}x, {row['model']}, {row['at once']} at once" for row in rows if row["drafts"] == "looked up"]
    return "; ".join(said) or NOT


_INTRODUCTION = """
# Latency of the LFM2 tiers

Made by `python -m tests.benchmarks.inference.latency_page FOLDER docs/latency.md` from what
`python -m pytest -m benchmark tests/benchmarks/inference/test_latency.py --keep FOLDER -s --shapes 350m,700m,1.2b,2.6b
--quantisations Q4_0,Q4_K_M,Q5_K_M,Q8_0,F16 --rounds 3` and `test_whole_path.py` beside it (`--rounds 20`) kept there;
no figure is typed by hand, and what nobody measured says so. The files have the tiers' true shapes and random weights:
speed and memory do not depend on the values.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Markdown from the cells that test_latency.py kept.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    _replace(chosen.page, page(chosen.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
