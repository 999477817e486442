"""Alerts and dashboards ask for series that the gateway gives, and the alerts are those that were asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.infra.infra_files import INFRA, command_tree, documents, series_given, series_named, verbs_named

DASHBOARDS = sorted((INFRA / "grafana" / "dashboards").glob("*.json"))
# What has to wake somebody: the alert, its bound, and for how long it has to hold.
WANTED = {
    "SlowAnswers": ("> 1", "5m"),
    "PoorAnswers": ("< 0.7", "10m"),
    "MemoryNearlyFull": ("> 0.9", "5m"),
    "UnsureRouter": ("< 0.5", "15m"),
    "ManyErrors": ("> 0.1", "5m"),
    "StaleRouter": ("> 60", "5m"),
    "OutboxOld": ("> 600", "5m"),
}


def rules() -> list[dict[str, Any]]:
    (file,) = documents(INFRA / "prometheus" / "alerts.yml")
    return [rule for group in file["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    shown = [
        target["expr"]
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
        if "expr" in target
    ]
    return [*(rule["expr"] for rule in rules()), *shown]


def test_every_series_that_is_asked_for_is_given() -> None:
    given, asked = series_given(), expressions()
    assert len(asked) > 30
    assert all(series_named(expression) for expression in asked)
    assert {name for expression in asked for name in series_named(expression)} - given == set()


def test_every_expression_is_promql() -> None:
    parser = pytest.importorskip("promql_parser")
    for expression in expressions():
        parser.parse(expression.replace("$__rate_interval", "1m"))


def test_the_alerts_that_were_asked_for_are_there() -> None:
    found = {rule["alert"]: rule for rule in rules()}
    for name, (bound, holds) in WANTED.items():
        assert found[name]["expr"].endswith(bound), name
        assert found[name]["for"] == holds, name


def test_every_alert_says_what_to_do_with_verbs_that_are_there() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        for verb in verbs_named(rule["annotations"]["action"]):
            assert is_command(verb), (rule["alert"], verb)


def is_command(words: tuple[str, ...]) -> bool:
    """Whether the words begin with a command; what follows one is its arguments, or the sentence's next words."""
    commands = command_tree()
    for word in words:
        if word not in commands:
            return False
        if not hasattr(commands[word], "commands"):
            return True
        commands = commands[word].commands
    return True


def test_dashboards_are_whole() -> None:
    seen: set[str] = set()
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        assert board["uid"] not in seen
        seen.add(board["uid"])
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in board["panels"]:
            assert panel["title"], path.name
            assert panel["datasource"]["uid"] in ("prometheus", "analytics"), path.name
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
    (sources,) = documents(INFRA / "grafana" / "provisioning" / "datasources" / "sources.yaml")
    assert {source["uid"] for source in sources["datasources"]} == {"prometheus", "analytics"}
