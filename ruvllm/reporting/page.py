"""A night's report as one HTML page: no script, nothing fetched, readable on paper. Works no figure out.

Everything that came from outside (questions, reasons, names) is escaped: the page is opened in a reviewer's browser.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ruvllm.reporting.charts import charts
from ruvllm.reporting.records import Group, NightReport, Target

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #000; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #000 }
table { border-collapse: collapse; width: 100%; margin: .8rem 0 }
th, td { border: 1px solid #888; padding: .25rem .5rem; text-align: left; vertical-align: top }
th { background: #eee } td.number { text-align: right; font-variant-numeric: tabular-nums }
tr.stops td { font-weight: bold } figure { margin: 1rem 0 } svg { max-width: 100%; height: auto }
@media print { h2 { break-after: avoid } figure, tr { break-inside: avoid } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the page asks nobody for anything

_CAPTIONS = {
    "volume": "Answers by tier",
    "cost": "Cost by tier, thousands of weighed tokens",
    "domains": "Quality by domain; N: answers that were scored",
    "regret": "Utility regret against the oracle on held-out questions",
    "accuracy": "How often the candidate takes the oracle's tier, by domain",
    "calibration": "Is the confidence right as often as it says?",
    "regret-trend": "Regret of each night's candidate",
    "forgetting": "What each candidate lost on the questions of earlier nights",
    "memory": "Memory after each night",
}


def page(report: NightReport) -> str:
    """The whole page."""
    drawn = charts(report)
    sections = [
        ("In short", _summary(report)),
        ("The day", _groups("tier", report.tiers) + _figures(drawn, "volume", "cost")),
        ("By what decided", _deciders(report)),
        ("By domain", _groups("domain", report.domains) + _figures(drawn, "domains")),
        ("Regret", _policies(report) + _figures(drawn, "regret", "regret-trend")),
        ("Accuracy and calibration", _calibration(report) + _figures(drawn, "accuracy", "calibration")),
        ("Forgetting", _forgetting(report) + _figures(drawn, "forgetting")),
        ("Memory", _nights(report) + _figures(drawn, "memory")),
        ("What would change", _changes(report)),
        ("Gates", _gates(report)),
        ("The specification's figures", _targets(report.targets)),
        ("Where the night's time went", _seconds(report)),
    ]
    title = escape(f"Night {report.night} ({report.cycle_id})")
    body = "\n".join(f"<h2>{escape(name)}</h2>\n{content}" for name, content in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _summary(report: NightReport) -> str:
    decided = "promoted" if report.promoted else f"not promoted: {report.why_not or 'waits for a reviewer'}"
    stops = [gate["name"] for gate in report.gates if gate["blocks"] and gate["outcome"] != "pass"]
    last = next((night.regret for night in reversed(report.nights) if night.night == report.night), None)
    rows = [
        ("answers", f"{report.answers}"),
        ("version", f"{report.version or 'none'}, {decided}"),
        ("serves now", f"version {report.champion}" if report.champion else "no version yet"),
        (
            "utility regret, held out",
            f"{last.mean:.3f} [{last.low:.3f}, {last.high:.3f}], N={last.n}" if last else "not measured",
        ),
        (
            "cost saved against always the largest tier",
            f"{report.cost_saved:.0%}, N={report.n_test}" if report.cost_saved is not None else "not measured",
        ),
        ("gates that stop it", ", ".join(stops) or "none"),
        *((name, url) for name, url in report.links.items()),
    ]
    notes = "".join(f"<p>Note: {escape(warning)}</p>" for warning in report.warnings)
    return _table(("", ""), rows) + notes


def _groups(name: str, groups: Sequence[Group]) -> str:
    if not groups:
        return _nothing("No answer in this night's day.")
    rows = [
        (g.name, g.answers, g.scored, _number(g.quality), f"{g.p50_ms:.0f}", f"{g.p95_ms:.0f}", _number(g.cost))
        for g in groups
    ]
    return _table((name, "answers", "scored", "quality (0-1)", "p50 ms", "p95 ms", "cost"), rows)


def _deciders(report: NightReport) -> str:
    """How often the fallback decided and a cascade asked again, and what that cost."""
    shares = "; ".join(
        f"{name}: {sum(g.answers for g in report.deciders if g.name == name) / report.answers:.1%}"
        for name in ("fallback", "cascade")
        if report.answers
    )
    note = f"<p>{escape(shares)} of {report.answers} answers. The cost of a cascade is that of both answers.</p>"
    return (note if shares else "") + _groups("decided by", report.deciders)


def _policies(report: NightReport) -> str:
    if not report.policies:
        return _nothing("Nothing was evaluated.")
    rows = [
        (
            p["policy"], f"{p['regret']:.3f} [{p['low']:.3f}, {p['high']:.3f}]", _number(p["utility"]),
            _number(p["quality"]), _number(p["latency_s"]), _number(p["cost"]), _number(p["accuracy_tier"]),
        )
        for p in report.policies
    ]  # fmt: skip
    columns = ("policy", "utility regret [95 %]", "utility", "quality (1-5)", "seconds", "cost", "tier accuracy")
    note = f"<p>N={report.n_test} held-out questions, {report.n_train} trained on.</p>"
    return note + _table(columns, rows)


def _calibration(report: NightReport) -> str:
    if report.ece is None:
        return _nothing("Not measured.")
    n = sum(tenth.n for tenth in report.tenths) or report.n_test
    return f"<p>Expected calibration error {report.ece:.3f}, N={n}; with few questions it is biased upwards.</p>"


def _forgetting(report: NightReport) -> str:
    if not any(night.forgetting for night in report.nights):
        return _nothing("Not measured yet: it needs a champion and the questions of an earlier night.")
    return ""


def _nights(report: NightReport) -> str:
    rows = [
        (
            n.night, n.questions, n.nodes if n.nodes is not None else "-", n.edges if n.edges is not None else "-",
            n.merged if n.merged is not None else "-", n.version or "-", "yes" if n.promoted else "no",
        )
        for n in report.nights
    ]  # fmt: skip
    return _table(("night", "questions", "nodes", "edges", "duplicates merged", "version", "promoted"), rows)


def _changes(report: NightReport) -> str:
    if not report.changed:
        return _nothing("There was no champion to compare with.")
    told = (
        f"<p>Of N={report.changed['n']} held-out questions {report.changed['tier']} would be answered by another tier, "
        f"{report.changed['pair']} by another tier or context.</p>"
    )
    rows = [(change.question, change.before, change.after, f"{change.gained:+.3f}") for change in report.changes]
    return told + (_table(("question", "champion", "candidate", "utility gained"), rows) if rows else "")


def _gates(report: NightReport) -> str:
    if not report.gates:
        return _nothing("No candidate was proposed.")
    rows = [
        (
            g["name"], _number(g["measured"]), _interval(g["interval"]), f"{g['direction']} {g['threshold']:g}",
            "-" if g["n"] is None else g["n"], g["outcome"], "yes" if g["blocks"] else "reported", g["reason"],
        )
        for g in report.gates
    ]  # fmt: skip
    marks = ["stops" if g["blocks"] and g["outcome"] != "pass" else "" for g in report.gates]
    return _table(("gate", "measured", "95 %", "wanted", "N", "outcome", "blocks", "note"), rows, marks)


def _targets(targets: Sequence[Target]) -> str:
    said = {True: "met", False: "missed", None: "not measured"}
    rows = [(t.what, t.wanted, _number(t.measured), t.n, said[t.met], t.note) for t in targets]
    return _table(("figure", "wanted", "measured", "N", "", "note"), rows)


def _seconds(report: NightReport) -> str:
    rows = [(name, f"{seconds:.1f}") for name, seconds in report.seconds.items()]
    return _table(("step", "seconds"), rows)


def _figures(drawn: Mapping[str, str], *names: str) -> str:
    return "".join(
        f"<figure>{drawn[name]}<figcaption>{escape(_CAPTIONS[name])}</figcaption></figure>"
        for name in names
        if name in drawn
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]], marks: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for place, row in enumerate(rows):
        mark = f' class="{marks[place]}"' if marks and marks[place] else ""
        lines.append(f"<tr{mark}>{''.join(_cell(cell) for cell in row)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(value: Any) -> str:
    text = str(value)
    number = text.lstrip("+-").replace(".", "", 1).isdigit()
    return f'<td class="number">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def _nothing(text: str) -> str:
    return f"<p>{escape(text)}</p>"
