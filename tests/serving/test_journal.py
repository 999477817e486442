"""What is logged and traced of an answer: figures always, texts only where the setting and the privacy level agree."""

from __future__ import annotations

import json
import logging

import pytest

from ruvllm.answering.answer import Answer, Ask
from ruvllm.answering.privacy import LEVELS
from ruvllm.errors import SettingsError
from ruvllm.serving.admission import CallerLimits
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.journal import Journal, JsonLines
from ruvllm.serving.keys import Caller
from ruvllm.serving.tracing import Tracing, open_tracing

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
    exporting = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = exporting.InMemorySpanExporter()
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


def test_no_endpoint_no_tracing_and_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracing("") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"ruvllm\[otel\]"):
        open_tracing("http://127.0.0.1:4318/v1/traces")
