"""An evaluation report as a Markdown table; knows nothing of how the figures were made."""

from __future__ import annotations

from typing import Any

_ORDER = (
    "oracle", "fastgrnn", "champion", "logistic-regression", "best-fixed", "always-small", "always-big", "random",
)  # fmt: skip


def report_markdown(report: dict[str, Any]) -> str:
    """Every policy beside the oracle, held out: utility regret with its 95 % interval, quality, seconds, cost."""
    policies = report["policies"]
    names = _named(policies)
    lines = [
        f"Held out: {report['n_test']} questions; trained on {report['n_train']}.",
        "",
        "| policy | utility | utility regret [95 %] | quality 1-5 | quality regret | latency s | cost"
        " | tier accuracy | pair accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
        *[_row(name, policies[name]) for name in names],
    ]
    traffic = [off_policy_line(report["off_policy"]), ""] if "off_policy" in report else []
    warnings = report.get("warnings") or []
    return "\n".join([*lines, "", *traffic, *[f"Note: {warning}" for warning in warnings]]).rstrip() + "\n"


def off_policy_line(about: dict[str, Any]) -> str:
    """What candidate and champion would have brought on stored answers, and what their difference is known to be."""
    names = [name for name in ("candidate", "champion", "difference") if name in about]
    shown = [
        f"{name} {_number(about[name]['mean'])} [{_number(about[name]['low'])}, {_number(about[name]['high'])}]"
        for name in names
    ]
    said = ", ".join(shown) or "too few of them are like what a router would decide to say anything"
    return f"On {about['n']} stored answers (off-policy, doubly robust utility [95 %]): {said}."


def policy_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The same figures as flat records, for a screen."""
    policies = report["policies"]
    return [
        {
            "policy": name,
            **{key: policies[name][key] for key in ("utility", "quality", "latency_s", "cost")},
            "regret": policies[name]["regret"]["utility"]["mean"],
            "low": policies[name]["regret"]["utility"]["low"],
            "high": policies[name]["regret"]["utility"]["high"],
            "accuracy_tier": policies[name]["accuracy_tier"],
            "accuracy_pair": policies[name]["accuracy_pair"],
        }
        for name in _named(policies)
    ]


def _named(policies: dict[str, Any]) -> list[str]:
    return [*[n for n in _ORDER if n in policies], *sorted(set(policies) - set(_ORDER))]


def _row(name: str, policy: dict[str, Any]) -> str:
    regret = policy["regret"]["utility"]
    cells = [
        name,
        _number(policy["utility"]),
        f"{_number(regret['mean'])} [{_number(regret['low'])}, {_number(regret['high'])}]",
        _number(policy["quality"]),
        _number(policy["regret"]["quality"]["mean"]),
        _number(policy["latency_s"]),
        _number(policy["cost"]),
        _number(policy["accuracy_tier"]),
        _number(policy["accuracy_pair"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
