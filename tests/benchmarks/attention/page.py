"""docs/attention.md, attention.png and explain.png from the results of the attention benchmarks. Measures nothing.

python -m tests.benchmarks.attention.page RESULTS docs/attention.md
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.attention.picture import draw
from tests.benchmarks.memory.report import page

_INTRODUCTION = """
# Attention over the retrieved neighbourhood

Made by `make bench-attention DATA=FOLDER`; no figure is typed by hand. The passages of each set are a memory, embedded
by the default encoder and linked by `ruvllm/memory/linking.py` (shared names, titles, nearness; no language model).
Seeds are the best by meaning and words; a walk of two hops adds what they lead to; every way ranks the same nodes.

One attention model is trained on four fifths of the questions of all sets together and asked the last fifth, five
times over. Intervals are 95 % bootstraps over questions; gains are paired. The gate's rule is in
`ruvllm/learning/attention_gate.py`. With 100 questions a set the intervals of MuSiQue and HotpotQA are wide.

What a model makes of a context (`contexts-…`, `spans-…`) is measured on the packaged models: greedy answers of at
most 48 tokens, F1 and exact match after SQuAD's normalisation with numbers by value (`ruvllm/evaluation/qa.py`). A
copied answer is held to a run of whole words of the passages by masking what else the model would say
(`ruvllm/inference/copying.py`, `Sampling.copying`). Concepts in `hierarchies` hold their passages by Contains edges,
as compaction makes them.

Answers read the best passage last, nearest to the question, because both packaged models answer better so
(`RUVLLM_CONTEXT_ORDER`); the oracle reads it first, because its bins then extend one another's prompt. Passages are
whole unless `RUVLLM_CONTEXT_SENTENCES` says otherwise: the gain of cutting them is small and of one model.

![What was found and what was made of it](attention.png)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Markdown from the results of the attention benchmarks.")
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    wholes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(chosen.results.glob("*.json"))]
    if not wholes:
        parser.error(f"{chosen.results} holds no results; run make bench-attention first")
    chosen.page.write_text(page(wholes, _INTRODUCTION), encoding="utf-8")
    draw(wholes, chosen.page.with_suffix(".png"))
    if (picture := chosen.results / "explain.png").exists():
        shutil.copyfile(picture, chosen.page.with_name(picture.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
