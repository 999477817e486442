"""docs/attention.png from the results of the attention benchmarks: what was found, and what was made of it.

Measures nothing; a result that is not there leaves its panel out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FIGURE = re.compile(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]")
Bar = tuple[str, float, float, float]  # name, mean, low, high


def draw(wholes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One panel of each kind: recall@5 where several passages are needed, F1 by context, F1 of spans."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(title, bars) for title, bars in _panels(wholes) if bars]
    if not panels:
        return
    height = sum(0.8 + 0.32 * len(bars) for _, bars in panels)
    ratios = [0.8 + 0.32 * len(bars) for _, bars in panels]
    figure, axes = pyplot.subplots(len(panels), figsize=(9, height), squeeze=False, height_ratios=ratios)
    for (title, bars), panel in zip(panels, axes[:, 0], strict=True):
        names = [name for name, *_ in bars]
        means = [mean for _, mean, _, _ in bars]
        spread = [[m - low for _, m, low, _ in bars], [high - m for _, m, _, high in bars]]
        colours = ["tab:orange" if "attention" in name and "untrained" not in name else "0.7" for name in names]
        panel.barh(range(len(bars)), means, xerr=spread, color=colours, error_kw={"elinewidth": 1})
        panel.set_yticks(range(len(bars)), names, fontsize=8)
        panel.invert_yaxis()
        panel.set_title(title, fontsize=9, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _panels(wholes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Bar]]]:
    panels = []
    for whole in wholes:
        for table in whole["tables"]:
            if whole["name"] == "multihop" and "recall@5 [95 %]" in table["columns"]:
                panels.append((f"recall@5, {table['title']}", _bars(table, "recall@5 [95 %]")))
            elif whole["name"].startswith("contexts"):
                rows = {**table, "rows": [row for row in table["rows"] if row[1] == "both"]}
                panels.append((f"F1, {table['title']}", _bars(rows, "F1 [95 %]")))
            elif whole["name"].startswith("spans"):
                panels.append((f"F1, {table['title']}", _bars(table, "F1 [95 %]")))
    return panels


def _bars(table: Mapping[str, Any], column: str) -> list[Bar]:
    """By the row's first cell."""
    at = table["columns"].index(column)
    found = ((str(row[0]), _FIGURE.match(str(row[at]))) for row in table["rows"])
    return [(label, float(m[1]), float(m[2]), float(m[3])) for label, m in found if m]
