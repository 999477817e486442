"""The night's page: every figure with its N, nothing fetched, nothing that a question could run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import psycopg
import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import LearningError
from ruvllm.reporting.charts import charts
from ruvllm.reporting.gather import gather, trend_figures
from ruvllm.reporting.page import page
from ruvllm.reporting.records import NightReport
from tests.analytics.analytics_rows import add_night, fill

HOSTILE = "<script>alert(1)</script> & 'question' \"1\""
REPORT: dict[str, Any] = {
    "n_train": 105,
    "n_test": 57,
    "per_domain": {"people": {"n": 30, "accuracy_tier": 0.7}, "land": {"n": 27, "accuracy_tier": 0.9}},
    "calibration": {
        "ece": 0.08, "n": 57,
        "bins": [{"n": 20, "said": 0.4, "right": 0.5}, {"n": 37, "said": 0.9, "right": 0.8}],
    },
    "changes": {
        "n": 57, "tier": 4, "pair": 9,
        "examples": [
            {"key": "default0", "from": "smollm2-135m 256", "to": "gemma3-270m 512", "gained": 0.75},
            {"key": "forgotten", "from": "a", "to": "b", "gained": 0.1},
        ],
    },
    "forgetting": {"rate": {"mean": 0.02, "low": -0.01, "high": 0.05}, "n": 48, "n_nights": 1},
    "cost_saved": 0.31,
    "warnings": ["the label of 3 questions is a tie"],
}  # fmt: skip


@pytest.fixture
def report(database: Database, database_url: str) -> NightReport:
    """Two nights; users asked 60 questions before the first began, the second asked one of its own."""
    with psycopg.connect(database_url) as owner:
        fill(owner, "default", 60)
        owner.execute("UPDATE learning.oracle_queries SET question = %s WHERE key = 'default0'", [HOSTILE])
        add_night(owner, "default", 1)
        owner.execute("UPDATE learning.cycles SET started_at = now() + interval '1 minute' WHERE night = 1")
        cycle_id = add_night(owner, "default", 2, promoted=False)
        owner.execute("UPDATE learning.cycles SET started_at = now() + interval '2 minutes' WHERE night = 2")
        owner.execute(
            "UPDATE serving.interactions SET cycle_id = %s WHERE id = (SELECT min(id) FROM serving.interactions)",
            [cycle_id],
        )
        owner.execute(
            "UPDATE learning.steps SET result = result || jsonb_build_object('forgetting', %s::jsonb)"
            " WHERE step = 'evaluate' AND cycle_id = %s",
            ['{"rate": {"mean": 0.02, "low": -0.01, "high": 0.05}, "n": 48}', cycle_id],
        )
    return gather(database, cycle_id, REPORT, {"flow run": "http://127.0.0.1:4200/runs/1"})


def test_figures_are_those_of_the_night(report: NightReport, database: Database) -> None:
    assert (report.night, report.version, report.champion, report.promoted) == (2, "2", "1", False)
    assert report.answers == 1  # what users asked before the first night was the first night's day
    first = gather(database, "night-0001-default", REPORT)
    assert first.answers == 59
    assert {group.name: group.answers for group in first.tiers} == {"gemma3-270m": 29, "smollm2-135m": 30}
    assert [night.night for night in report.nights] == [1, 2]
    assert (report.nights[1].nodes, report.nights[1].merged) == (200, 3)
    assert report.nights[0].forgetting is None
    assert report.nights[1].forgetting is not None
    assert report.nights[1].forgetting.n == 48
    assert [(change.question, change.gained) for change in report.changes] == [(HOSTILE, 0.75)]


def test_targets_say_met_missed_or_not_measured(report: NightReport) -> None:
    found = {target.what: target for target in report.targets}
    assert found["answers written to memory"].met is False  # 5 of 5
    assert found["answers written to memory"].n == 5
    assert found["judge's rating, 1 to 5"].met is None
    assert "no accepted judge" in found["judge's rating, 1 to 5"].note


class Reader(HTMLParser):
    """Tags and text of a page; complains of tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href", "action"):
                assert (value or "").startswith("#"), value

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_and_runs_nothing(report: NightReport) -> None:
    html, reader = page(report), Reader()
    reader.feed(html)
    assert not {"script", "iframe", "link", "img", "object", "form"} & set(reader.tags)
    assert reader.tags.count("figure") == reader.tags.count("svg") == len(charts(report)) == 9
    assert HOSTILE in "".join(reader.text)
    assert "<script>" not in html
    assert not re.search(r"url\((?!#)|@import", html)
    assert "default-src 'none'" in html
    text = " ".join(reader.text)
    for said in ("N=57", "Night 2", "31%", "4 would be answered by another tier", "missed", "not measured", "merged 3"):
        assert said in text, said


def test_the_same_figures_make_the_same_page(report: NightReport) -> None:
    assert page(report) == page(report)


def test_charts_can_be_told_apart_without_colour(report: NightReport) -> None:
    for name, svg in charts(report).items():
        colours = set(re.findall(r"#[0-9a-fA-F]{6}", svg)) - {"#ffffff", "#000000"}
        assert colours == set(), name


def test_a_first_night_has_no_trend_and_says_so(database: Database, database_url: str) -> None:
    with psycopg.connect(database_url) as owner:
        owner.execute("INSERT INTO learning.cycles (id, tenant, night) VALUES ('night-0001-x', 'default', 1)")
    html = page(gather(database, "night-0001-x", {}))
    for said in ("No answer", "Nothing was evaluated", "no champion to compare with", "No candidate was proposed"):
        assert said in html, said


def test_an_unknown_night_is_named(database: Database) -> None:
    with pytest.raises(LearningError, match="night-9"):
        gather(database, "night-9", {})


def test_what_a_night_keeps_for_later_trends() -> None:
    kept = trend_figures(REPORT)
    assert kept["forgetting"]["rate"]["mean"] == 0.02
    assert kept["calibration"] == {"ece": 0.08, "n": 57}
