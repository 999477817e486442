"""Charts of a night's report as SVG texts: black on white, told apart by marker, dash and hatch, each with its N.

Knows nothing of HTML and of databases. The same figures give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ruvllm.reporting.records import Group, Interval, Night, NightReport, Tenth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (7.2, 3.2)  # inches
_STYLE: Any = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")


def draw(name: str, plot: Callable[[Axes], None]) -> str:
    """The SVG of one chart; `name` makes its inner ids differ from those of other charts on a page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure.add_subplot())
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue().partition("?>")[2].partition("<svg")[2].join(("<svg", ""))


def charts(report: NightReport) -> dict[str, str]:
    """Every chart that the report has figures for, by name."""
    made: dict[str, str] = {}
    if report.tiers:
        made["volume"] = draw("volume", lambda axes: _bars(axes, report.tiers, "answers", _answers))
        made["cost"] = draw("cost", lambda axes: _bars(axes, report.tiers, "cost", lambda group: group.cost))
    if report.domains:
        made["domains"] = draw("domains", lambda axes: _bars(axes, report.domains, "mean quality (0-1)", _quality))
    if report.policies:
        made["regret"] = draw("regret", lambda axes: _policies(axes, report))
    if report.per_domain:
        made["accuracy"] = draw("accuracy", lambda axes: _accuracy(axes, report))
    if report.tenths:
        made["calibration"] = draw("calibration", lambda axes: _calibration(axes, report.tenths))
    return {**made, **trends(report.nights)}


def trends(nights: Sequence[Night]) -> dict[str, str]:
    """What is drawn of all nights together, as far as there are figures, by name."""
    made: dict[str, str] = {}
    if any(night.regret for night in nights):
        made["regret-trend"] = draw("regret-trend", lambda axes: _trend(axes, nights, "utility regret", _regret_of))
    if any(night.forgetting for night in nights):
        made["forgetting"] = draw("forgetting", lambda axes: _forgetting(axes, nights))
    if any(night.nodes is not None for night in nights):
        made["memory"] = draw("memory", lambda axes: _memory(axes, nights))
    return made


def _answers(group: Group) -> float:
    return float(group.answers)


def _quality(group: Group) -> float:
    return group.quality or 0.0


def _regret_of(night: Night) -> Interval | None:
    return night.regret


def _bars(axes: Axes, groups: Sequence[Group], label: str, value: Callable[[Group], float]) -> None:
    values = [value(group) for group in groups]
    bars = axes.bar(range(len(groups)), values, color="white", edgecolor="black")
    for place, bar in enumerate(bars):
        bar.set_hatch(_HATCHES[place % len(_HATCHES)])
    axes.bar_label(bars, fmt="{:.3g}")
    axes.set_xticks(range(len(groups)), [f"{group.name}\nN={_n(group, label)}" for group in groups])
    axes.set_ylabel(label)
    axes.margins(y=0.15)


def _n(group: Group, label: str) -> int:
    return group.scored if "quality" in label else group.answers


def _policies(axes: Axes, report: NightReport) -> None:
    """Regret of every policy with its interval, the best above."""
    rows = sorted(report.policies, key=lambda row: -row["regret"])
    means = [row["regret"] for row in rows]
    errors = [
        [max(0.0, row["regret"] - row["low"]) for row in rows],
        [max(0.0, row["high"] - row["regret"]) for row in rows],
    ]
    axes.errorbar(means, range(len(rows)), xerr=errors, fmt="o", color="black", capsize=3)
    axes.set_yticks(range(len(rows)), [row["policy"] for row in rows])
    axes.set_xlabel(f"utility regret against the oracle, 95 % interval, N={report.n_test} held out")
    axes.axvline(0.0, color="black", linewidth=0.6)


def _accuracy(axes: Axes, report: NightReport) -> None:
    names = sorted(report.per_domain)
    bars = axes.bar(
        range(len(names)), [report.per_domain[name]["accuracy_tier"] for name in names], color="white",
        edgecolor="black", hatch="///",
    )  # fmt: skip
    axes.bar_label(bars, fmt="{:.2f}")
    axes.set_xticks(range(len(names)), [f"{name}\nN={report.per_domain[name]['n']}" for name in names])
    axes.set_ylabel("accuracy of the tier")
    axes.set_ylim(0, 1.1)


def _calibration(axes: Axes, tenths: Sequence[Tenth]) -> None:
    axes.plot([0, 1], [0, 1], linestyle="--", color="black", linewidth=0.8, label="as said")
    axes.plot([t.said for t in tenths], [t.right for t in tenths], marker="o", color="black", label="measured")
    for tenth in tenths:
        axes.annotate(f"N={tenth.n}", (tenth.said, tenth.right), xytext=(4, -10), textcoords="offset points")
    axes.set(xlabel="confidence", ylabel="share within ε of the oracle", xlim=(0, 1.05), ylim=(0, 1.05))
    axes.legend(frameon=False)


def _trend(axes: Axes, nights: Sequence[Night], label: str, of: Callable[[Night], Interval | None]) -> None:
    shown = [(night.night, found) for night in nights if (found := of(night))]
    places = [place for place, _ in shown]
    means = [found.mean for _, found in shown]
    errors = [[max(0.0, f.mean - f.low) for _, f in shown], [max(0.0, f.high - f.mean) for _, f in shown]]
    axes.errorbar(places, means, yerr=errors, marker="o", color="black", capsize=3)
    for place, found in shown:
        axes.annotate(f"N={found.n}", (place, found.mean), xytext=(5, 5), textcoords="offset points")
    _night_axis(axes, places)
    axes.set_ylabel(f"{label}, 95 % interval")


def _forgetting(axes: Axes, nights: Sequence[Night]) -> None:
    _trend(axes, nights, "forgetting", lambda night: night.forgetting)
    axes.axhline(0.05, color="black", linestyle=":", label="wanted: below 0.05")
    axes.legend(frameon=False)


def _memory(axes: Axes, nights: Sequence[Night]) -> None:
    shown = [night for night in nights if night.nodes is not None]
    places: list[Any] = [night.night for night in shown]
    axes.plot(places, [night.nodes or 0 for night in shown], marker="o", color="black", label="nodes")
    axes.plot(places, [night.edges or 0 for night in shown], marker="s", linestyle="--", color="black", label="edges")
    for night in shown:
        if night.merged is not None:
            axes.annotate(f"merged {night.merged}", (night.night, night.nodes or 0), xytext=(4, 6),
                          textcoords="offset points")  # fmt: skip
    _night_axis(axes, places)
    axes.set_ylabel("after the night")
    axes.legend(frameon=False)


def _night_axis(axes: Axes, places: Sequence[int]) -> None:
    axes.set_xticks(list(places))
    axes.set_xlabel("night")
    axes.margins(x=0.1, y=0.2)
