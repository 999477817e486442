"""What the CLI says after a night and after an answer: tables and the next steps. Works nothing out anew."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from ruvllm import services
from ruvllm.answering.answer import Answer
from ruvllm.commands.console import console, table
from ruvllm.settings import Settings


def show_night(settings: Settings, result: dict[str, Any]) -> None:
    """The table that ends `ruvllm cycle`, and where to look."""
    steps = result["steps"]
    console.print()
    console.rule(f"Night {result['night']}  ({result['cycle_id']})", align="left")
    console.print(_traffic(steps["day"]))
    console.print(_learning(steps))
    console.print(_policies(steps["evaluate"]))
    console.print(_gates(steps["propose"]))
    for warning in steps["evaluate"]["warnings"]:
        console.print(f"[yellow]note:[/] {warning}", soft_wrap=True)
    _next_steps(settings, steps)


def _traffic(day: dict[str, Any]) -> Any:
    rows = [
        [t["tier"], t["answers"], t["quality"], f"{t['latency_ms_p50'] / 1000:.2f} s", t["cost"]] for t in day["tiers"]
    ]
    return table(
        f"Questions asked: {day['questions']}", ["answered by", "answers", "quality (0-1)", "latency p50", "cost"], rows
    )


def _learning(steps: dict[str, Any]) -> Any:
    collect, evaluate, maintain = steps["collect"], steps["evaluate"], steps["maintain"]
    promote, writes = steps["promote"], steps["day"]["writeback"]
    low, high = evaluate["regret_after_interval"]
    rows = [
        ["oracle: questions run now / runs", f"{collect['queries']} / {collect['runs']}"],
        ["oracle: time saved by shared prefixes", _percent(collect["prefix_saving"])],
        ["trained on / held out", f"{evaluate['n_train']} / {evaluate['n_test']} questions"],
        [f"utility regret against the oracle, before ({evaluate['before']})", evaluate["regret_before"]],
        [
            "utility regret against the oracle, after (candidate)",
            f"{evaluate['regret_after']:.3f} [{low:.3f}, {high:.3f}]",
        ],
        ["tier accuracy against the oracle, held out", evaluate["accuracy_tier"]],
        *_attention(steps),
        ["gates passed", _gates_passed(steps["propose"])],
        ["promoted version", promote["version"] if promote["promoted"] else f"none: {promote['why']}"],
        ["answers written to memory / merged / skipped", " / ".join(str(writes.get(k, 0)) for k in _OUTCOMES)],
        ["memory: nodes / edges", f"{maintain['counts']['nodes']} / {maintain['counts']['edges']}"],
        _duplicates(maintain),
        *([f"alarm {n}", alarm] for n, alarm in enumerate(maintain["alarms"], start=1)),
    ]
    return table("What the night learned", ["", "figure"], rows)


def _attention(steps: dict[str, Any]) -> list[list[str]]:
    """Nothing of a night that had no such step yet."""
    attend = steps.get("attend")
    return [["attention part of the bundle", f"{attend['part']}: {attend['why']}"]] if attend else []


def _duplicates(maintain: dict[str, Any]) -> list[str]:
    """What was merged; of a dry run, which merges nothing, what would have been."""
    if maintain["dry_run"]:
        found = f"{maintain['would_merge_exact']} / {maintain['would_merge_near']}"
        return ["duplicates found, exact / near (a first night only shows them)", found]
    return ["duplicates merged, exact / near", f"{maintain['merged_exact']} / {maintain['merged_near']}"]


def _policies(evaluate: dict[str, Any]) -> Any:
    rows = [
        [p["policy"], p["utility"], f"{p['regret']:.3f} [{p['low']:.3f}, {p['high']:.3f}]", p["quality"],
         p["latency_s"], p["cost"], p["accuracy_tier"], p["accuracy_pair"]]
        for p in evaluate["policies"]
    ]  # fmt: skip
    columns = ["policy", "utility", "regret [95 %]", "quality 1-5", "seconds", "cost", "tier acc.", "pair acc."]
    return table(f"On {evaluate['n_test']} held-out questions of countries never trained on", columns, rows)


_OUTCOMES = ("written", "merged", "skipped")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _gates_passed(propose: dict[str, Any]) -> str:
    passed = sum(gate["outcome"] == "pass" for gate in propose["gates"])
    return f"{passed} of {len(propose['gates'])}"


def _gates(propose: dict[str, Any]) -> Any:
    rows = [
        [g["name"], g["measured"], g["threshold"], g["n"], g["outcome"], "blocks" if g["blocks"] else "reports"]
        for g in propose["gates"]
    ]
    return table(f"Gates of version {propose['version']}", ["gate", "measured", "wanted", "N", "outcome", ""], rows)


def _next_steps(settings: Settings, steps: dict[str, Any]) -> None:
    urls, served = services.urls(settings), steps["serve"]
    console.print()
    if served["served"]:
        console.print(
            f"The gateway answered {served['asked']!r} with {served['answer']!r}, "
            f"routed by version {served['router_version']}.",
            soft_wrap=True,
            markup=False,
        )
    console.print('Ask it:      [bold].venv/bin/ruvllm ask "What is the capital of Ghana?"[/]')
    console.print("Keep it up:  [bold]make up[/]   then:")
    console.print(f"  gateway    {urls.gateway}/v1/chat/completions")
    console.print(f"  MLflow     {urls.mlflow}   registered model ruvllm-router")
    console.print(f"  Prefect    {urls.prefect}   flow nightly")


def answer_dict(answer: Answer) -> dict[str, Any]:
    """An answer as JSON."""
    decision = answer.decision
    return {
        "answer": answer.text,
        "request_id": answer.request_id,
        "tier": answer.tier,
        "context_bin": answer.context_bin,
        "decided_by": decision.decided_by,
        "confidence": decision.confidence,
        "propensity": decision.propensity,
        "router_version": decision.router_version,
        "memory": [{"node": h.node.uuid, "similarity": h.similarity, "text": h.node.text} for h in answer.hits[:5]],
        "stage_ms": answer.stage_ms,
        "total_ms": answer.total_ms,
        "degraded": list(answer.degraded),
    }


def show_answer(answer: Answer) -> None:
    decision = answer.decision
    console.print(Text(f"\n{answer.text}\n", style="bold"))
    version = f"router version {decision.router_version}" if decision.router_version else "no router promoted yet"
    confidence = "" if decision.confidence is None else f", confidence {decision.confidence:.2f}"
    console.print(
        f"{answer.tier} with {answer.context_bin} tokens of context, by {decision.decided_by}{confidence}, {version}"
    )
    console.print("  ".join(f"{name} {ms:.0f} ms" for name, ms in answer.stage_ms.items()))
    for reason in answer.degraded:
        console.print(f"[yellow]degraded:[/] {reason}")
