"""What is logged and traced of an answer: figures always, texts only where the setting and the privacy level agree."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ruvllm.answering.answer import Answer, Ask
from ruvllm.answering.privacy import LEVELS
from ruvllm.errors import SettingsError
from ruvllm.registry.traces import MlflowSpans
from ruvllm.serving.admission import CallerLimits
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.journal import Journal, JsonLines
from ruvllm.serving.keys import Caller
from ruvllm.serving.tracing import Tracing, open_tracings
from ruvllm.settings import Settings

CALLER = Caller("k1", "acme", frozenset({"ask"}), CallerLimits())


def answer_to(ask: Ask) -> Answer:
    speech = FakeAnswerer(router_version="night-7").stream(ask)
    list(speech)
    return speech.answer


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("log_prompts", [False, True])
def test_a_line_holds_what_its_level_allows(caplog: pytest.LogCaptureFixture, name: str, log_prompts: bool) -> None:
    caplog.set_level(logging.INFO, "ruvllm.answers")
    ask = Ask("A secret?\nOn two lines.", request_id="r1", writer="ann", privacy=name)
    Journal(log_prompts).answered(ask, answer_to(ask), CALLER, 0.25)
    text = JsonLines().format(caplog.records[-1])
    line = json.loads(text)
    assert "\n" not in text
    assert (line["request_id"], line["key"], line["tenant"], line["seconds"]) == ("r1", "k1", "acme", 0.25)
    assert ("secret" in text) == (log_prompts and LEVELS[name].logs_text)
    assert ("writer" in line) == LEVELS[name].logs_writer


def test_spans_of_an_answer_name_its_stages_and_hold_no_text() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    ask = Ask("A secret?", request_id="r1")
    tracing.answered(answer_to(ask), 0.25)
    tracing.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {"answer", "embed", "search", "route", "generate"} <= set(spans)
    whole = spans["answer"]
    assert spans["embed"].parent.span_id == whole.context.span_id
    assert whole.end_time - whole.start_time == pytest.approx(0.25e9, rel=1e-6)
    assert spans["embed"].end_time - spans["embed"].start_time == pytest.approx(4e6, rel=1e-6)
    assert "secret" not in str([span.to_json() for span in spans.values()])


def test_a_share_of_the_answers_is_traced_each_of_them_whole() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, 0.25)
    answer = answer_to(Ask("A secret?", request_id="r1"))
    for _ in range(400):
        tracing.answered(answer, 0.25)
    tracing.close()
    traces = Counter(span.context.trace_id for span in exporter.get_finished_spans())
    assert 60 <= len(traces) <= 140  # 0.25 of 400, give or take 4.6 standard deviations
    assert set(traces.values()) == {1 + len(answer.stage_ms)}


def test_spans_go_where_the_settings_say(settings: Settings) -> None:
    assert open_tracings(settings) == ()
    everywhere = replace(settings, otel_endpoint="http://127.0.0.1:9/v1/traces", trace_share=0.5)
    opened = open_tracings(everywhere)
    assert len(opened) == 2
    for tracing in opened:
        tracing.close()


def test_an_mlflow_that_is_away_costs_the_traces_and_is_said_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = MlflowSpans(replace(settings, mlflow_tracking_uri="http://127.0.0.1:9"))
    assert [exporter.export([]), exporter.export([])] == [SpanExportResult.FAILURE] * 2
    assert [record.getMessage().partition(":")[0] for record in caplog.records if record.name.endswith("traces")] == [
        "MLflow"
    ]


def test_an_identities_file_without_the_trainer_is_refused_at_the_start(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    file.write_text('[reviewer]\nusername = "r"\npassword = "p"\n')
    with pytest.raises(SettingsError, match=r"want \[trainer\]"):
        open_tracings(replace(settings, trace_share=0.5, mlflow_identities_file=str(file)))
