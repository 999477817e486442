"""docs/router-outcomes.md and its figure from the results of the router benchmarks. Measures nothing.

python -m tests.benchmarks.router.page RESULTS docs/router-outcomes.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.memory.report import page
from tests.benchmarks.router.unhelpful import section

CURVES = "Mean score by tenth of the cost range"
STREAM = "Cumulative regret along the stream"
SHOWN = ("logistic regression", "k nearest neighbours", "gradient boosting", "plain MLP", "FastGRNN (ours)")
_INTRODUCTION = """
# Routing on public outcomes

Made by `make bench-router`; no figure is typed by hand. Every contender predicts the quality of each tier for queries
it never saw (the official split, or grouped 5-fold where there is none), the same predicted prices are weighed against
it, and lambda moves at decision time. Queries that stand on both sides, word for word or nearly, are left out.
Intervals are 95 %, of a bootstrap over groups of equal queries, on outcomes averaged over the seeds; they do not hold
the spread of training, which stands beside them (sd over seeds).

`features` are those of the router's 128 that a query alone determines (no user, no clock), and in the places of
historical accuracy what the 40 nearest training queries brought on each tier, those that say the same left out;
`embedding` is the encoder's vector alone. The hull is that of fixed mixtures, its coin set on the tested rows
themselves: no router without knowledge of the query lies above it. APGR over cost is the area of the recovered gap
between the cheapest and the best tier at tenths of the cost range; with two tiers RouteLLM's own protocol stands
beside it.

![Quality against cost](router-outcomes.png)
"""
_ONLINE = """
![Regret along a stream](router-online.png)
"""


def draw(wholes: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel a set: mean score against mean cost, the hull, and the contenders on the embedding."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [(whole["name"], table) for whole in wholes for table in whole["tables"] if table["title"] == CURVES]
    figure, panels = pyplot.subplots(1, max(1, len(found)), figsize=(4.6 * max(1, len(found)), 4), squeeze=False)
    for panel, (name, table) in zip(panels[0], found, strict=False):
        costs, hull, *rows = table["rows"]
        panel.plot(costs[2:], hull[2:], "k--", label="hull of fixed mixtures")
        for row in rows:
            if row[0] == "embedding" and row[1] in SHOWN:
                panel.plot(costs[2:], row[2:], linewidth=2.4 if "(ours)" in row[1] else 1.0, label=row[1])
        panel.locator_params(axis="x", nbins=4)
        panel.set(title=name, xlabel=costs[1], ylabel="mean score")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_online(whole: dict[str, Any], path: Path) -> None:
    """Cumulative regret against the number of queries answered, a line a contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (table,) = [table for table in whole["tables"] if table["title"] == STREAM]
    figure, panel = pyplot.subplots(figsize=(7.5, 4.6))
    queries = [float(column) for column in table["columns"][1:]]
    for name, *regret in table["rows"]:
        panel.plot(queries, regret, linewidth=2.0 if "(ours)" in name else 1.0, label=name,
                   linestyle="--" if name.startswith("paretobandit") else "-")  # fmt: skip
    panel.set(xlabel="queries answered", ylabel="cumulative regret against the oracle")
    panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Markdown and a figure from the results of the router benchmarks.")
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    wholes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(chosen.results.glob("*.json"))]
    if not wholes:
        parser.error(f"{chosen.results} holds no results; run make bench-router DATA=FOLDER first")
    draw(wholes, chosen.page.with_suffix(".png"))
    introduction = _INTRODUCTION
    for whole in wholes:
        if whole["name"] == "online":
            draw_online(whole, chosen.page.with_name("router-online.png"))
            introduction += _ONLINE
    chosen.page.write_text(page(wholes, introduction) + "\n" + section(wholes) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
