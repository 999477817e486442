"""Specification 4.3: recall@10 by corpus size at each band's M, efConstruction and efSearch; sizes up to `--n`.

    python -m pytest -m benchmark tests/benchmarks/memory/test_recall.py --n 1000000 --keep FOLDER

The graph is faiss' over half precision, which the replica maps: at the band's parameters the replica's recall is that
of its graph, and test_speed measures the replica and pgvector themselves at `--n`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from ruvllm.memory import hnsw
from tests.benchmarks.memory import libraries, vectors
from tests.benchmarks.memory.conftest import Options
from tests.benchmarks.memory.libraries import rows_of
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark
GRAPH = "faiss-half"


@dataclass(frozen=True)
class Size:
    """A row of the specification's table that fits here: what it hopes for, and our own goal where there is one."""

    n: int
    hoped: float
    goal: float | None = None


SIZES = (Size(50_000, 0.98), Size(100_000, 0.96, 0.99), Size(1_000_000, 0.94, 0.97))


def test_recall_by_size(options: Options, report: Report) -> None:
    rows = [_row(size, options) for size in SIZES if size.n <= options.n]
    columns = ("nodes", "M", "efConstruction", "efSearch", "recall@10", "specification", "self-recall@10", "recall@64")
    report.table("Recall by corpus size (specification 4.3)", columns, rows, _NOTE)
    for size, row in zip(SIZES, rows, strict=False):
        wanted = size.goal or size.hoped
        report.target(f"recall@10 of the graph, {size.n:,} nodes", f">= {wanted}", f"{row[4]:.4f}", row[4] >= wanted)
        report.target(f"self-recall@10 of the graph, {size.n:,} nodes", ">= 0.999", f"{row[6]:.4f}", row[6] >= 0.999)
    for size in SIZES[len(rows) :]:
        report.target(
            f"recall@10 of the graph, {size.n:,} nodes", f">= {size.goal or size.hoped}", f"run with --n {size.n}", None
        )


_NOTE = (
    "Self-recall: of 1,000 stored vectors, how many are among their own ten nearest. recall@64 with efSearch = "
    "max(64, the band's). Bands begin at their lower bound: 100,000 nodes have M 32, 1,000,000 have M 48."
)


def _row(size: Size, options: Options) -> tuple[int, int, int, int, float, float, float, float]:
    band = hnsw.band(size.n)
    corpus = vectors.made(size.n, options.dim, options.queries, options.keep)
    graph, _ = libraries.kept(GRAPH, corpus, band, options.keep, options.build_threads)
    graph.width(band.ef_search)
    recall = corpus.recall(rows_of(graph.search, corpus.queries, 10), 10)
    found_itself = _self_recall(graph, corpus)
    graph.width(max(64, band.ef_search))
    wide = corpus.recall(rows_of(graph.search, corpus.queries, 64), 64)
    digits = (round(recall, 4), size.hoped, round(found_itself, 4), round(wide, 4))
    return (size.n, band.m, band.ef_construction, band.ef_search, *digits)


def _self_recall(graph: libraries.Library, corpus: vectors.Corpus) -> float:
    asked = np.sort(np.random.default_rng(0).choice(corpus.n, size=min(1000, corpus.n), replace=False))
    found = rows_of(graph.search, np.asarray(corpus.vectors[asked], dtype=np.float32), 10)
    return float((found == asked[:, None]).any(axis=1).mean())
