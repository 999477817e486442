"""docs/judge.md from the results of test_judge.py: a figure on the page is never typed by hand.

python -m tests.benchmarks.inference.judge_page RESULTS docs/judge.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.memory.report import page

_INTRODUCTION = """
# The judge: what its word is worth

A tier can judge answers: it is shown the rubric of specification 6.2 (factual accuracy grounded in the context,
completeness, coherence, conciseness), the passages, the query and the response, and its score is the expectation over
the probabilities of "1" to "5" as the next token. That is what sampling under the grammar `[1-5]` would average to: the
grammar leaves those five, each with its share of their sum. The sum itself ("mass") is reported, and an answer at which
it is under 1 % has no score, never a 3.

## When a judge may label

| question has | labels |
|---|---|
| gold | gold's alone; no judge is asked |
| no gold, judge accepted | the judge's score through its calibration curve; the row names the calibration |
| no gold, else | none: the question is skipped, counted, and the night's report says why |

A judge is a model file and a prompt; a change of either is another judge. `ruvllm judge calibrate` holds it against
gold: isotonic regression from score to quality, agreement by Spearman's correlation and Cohen's kappa (five-fold, out
of fold by question, so nothing is scored on what it was fitted on). It is **refused** where, on any data set, there are
fewer than 50 questions, the 95 % interval of either figure reaches 0, or the calibrated score predicts gold no better
than the mean does. The newest calibration of a judge counts. Everything is kept per tenant in Postgres
(`learning.judge_scores`, `learning.judge_calibrations`): hashes and figures, no texts.

    ruvllm judge score --data answers.jsonl --out scores.jsonl       # resumable; off the request path
    ruvllm judge agreement --data answers.jsonl                      # figures only
    ruvllm judge calibrate --data squad.jsonl --data truthful.jsonl  # decides and stores
    ruvllm judge requests
    ruvllm judge list

Answered requests without gold and feedback are never judged while a user waits, and not at all by a refused judge: they
stay unscored. `ruvllm judge requests` gives them an accepted judge's quality (`quality_source` "judge"), which feedback
outranks and which writes nothing back to memory.

One answer is judged at a time, so the order of answers cannot matter; the order of the passages can, and is measured.

What these tables do not say: how LFM2 judges. Its weights are not on this machine, and quality cannot be had from
random ones; `ruvllm judge calibrate --tier lfm2-2.6b` is the command where they are. A judge that scores its own tier's
answers may prefer them; with gold from elsewhere that is not measured here. The fences keep an answer from posing as a
score or a turn, not from asking for one: the last table shows how far that moves a small model, and agreement with gold
that nobody begged for does not rule it out. So a judge's label counts for less than gold's wherever both could be had,
and judged answers are not written back as trusted.

How the tables were made: `tests/benchmarks/inference/test_judge.py` says it, and `judge_data.py` beside it how the
answers were. TruthfulQA: one true and one false answer a question, no passages. SQuAD (newwiki): over its passage, the
gold answer, the gold answer of another question on that passage, and the gold answer cut after half of its words, whose
gold is what `evaluation/qa.py` gives it. The prompts were written once, before any score was looked at.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="docs/judge.md from the results of the judges' benchmark.")
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    found = chosen.results / "judge.json"
    if not found.is_file():
        parser.error(f"{found} is not there; run tests/benchmarks/inference/test_judge.py with --out first")
    partial = chosen.page.with_suffix(".partial")
    partial.write_text(page([json.loads(found.read_text(encoding="utf-8"))], _INTRODUCTION), encoding="utf-8")
    partial.replace(chosen.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
