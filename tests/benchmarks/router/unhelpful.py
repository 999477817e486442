"""What did not help, read from the results: parts that cost something and brought nothing on some set. No measuring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OURS, LINEAR = "FastGRNN (ours)", "logistic regression"
_TITLE = "## What did not help"
_NOTE = """
Every row is a part of ours that another row of the same run matches or beats without it. A part that stays in the
product nevertheless does so for a reason that the figure does not speak of: bytes save memory, an anchor keeps a live
router still, exploration pays where tiers change.
"""
Row = tuple[str, str, str, str]


def section(wholes: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line a finding; what was not run has no line."""
    rows = [row for whole in wholes for table in whole["tables"] for row in _of(str(whole["name"]), table)]
    head = "| part | where | with it | without it |\n|---|---|---|---|"
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{_TITLE}\n{_NOTE}\n{head}\n{body}" if rows else ""


def _of(name: str, table: Mapping[str, Any]) -> Iterator[Row]:
    title, columns = str(table["title"]), [str(column) for column in table["columns"]]
    rows = [dict(zip(columns, row, strict=True)) for row in table["rows"]]
    if title == "Contenders":
        yield from _cell(name, rows)
    elif title.startswith("Objectives"):
        yield from _objectives(name, rows)
    elif title.startswith("Each step of compression"):
        yield from _compression(name, rows)
    elif "average accuracy" in columns:
        yield from _continual(name, rows)
    elif title.startswith("Mean regret a query"):
        yield from _exploring(rows)


def _cell(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    apgr = {(row["looks at"], row["contender"]): row["APGR over cost [95 %]"] for row in rows}
    for view in ("features", "embedding"):
        ours, linear = apgr[view, OURS], apgr[view, LINEAR]
        if first(ours) <= first(linear):
            yield "network over a logistic regression", f"{name}, {view}: APGR over cost", str(ours), str(linear)


def _objectives(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    plain = next(row for row in rows if row["trained on"] == "quality head")
    for row in rows:
        difference = str(row["against the quality head [95 %]"])
        if row is not plain and bounds(difference)[0] <= 0:
            with_it = f"{row['utility']:.4f} ({difference})"
            yield f"training: {row['trained on']}", f"{name}: utility", with_it, f"{plain['utility']:.4f}"


def _compression(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for row in rows:
        speed = row["speed-up"]
        if isinstance(speed, float) and speed < 1 and "dense" not in row["form"]:
            yield f"compression: {row['form']}", f"{name}: speed of a step", f"{speed:.2f} x", "1 x"


def _continual(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    found = {str(row["method"]): (float(row["average accuracy"]), row["backward transfer"]) for row in rows}
    rivals = {method: "naive" for method in ("EWC, an anchor a task", "online EWC", "replay")}
    for method, rival in {**rivals, "EWC + replay": "replay"}.items():
        (ours, kept), (theirs, lost) = found[method], found[rival]
        if ours <= theirs:
            with_it = f"{ours:.4f} (backward transfer {kept})"
            yield f"{method}, over {rival}", f"{name}: average accuracy", with_it, f"{theirs:.4f} ({lost})"


def _exploring(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    found = {str(row["contender"]): str(row["100%"]) for row in rows}
    still = found["trained router, learns nothing"]
    for name, regret in found.items():
        if "(ours)" in name and "from zero" not in name and first(regret) >= first(still):
            yield f"learning on the stream: {name}", "regret a query, whole stream", regret, still


def first(text: object) -> float:
    """The mean of `0.1 [0.0, 0.2]`."""
    return float(str(text).split()[0])


def bounds(text: str) -> tuple[float, float]:
    """The bounds of `0.1 [0.0, 0.2]`."""
    low, high = text[text.index("[") + 1 : text.index("]")].split(",")
    return float(low), float(high)
