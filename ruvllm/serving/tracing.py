"""OpenTelemetry spans of answers, where an endpoint is set; made from the times that an answer carries.

Knows nothing of HTTP. The packages are an extra (`otel`): without an endpoint none is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from typing import TYPE_CHECKING, Any

from ruvllm import __version__
from ruvllm.answering.answer import Answer
from ruvllm.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_NAMES = {"store": "write back"}  # stage -> span, where they differ


class Tracing:
    """A provider of its own, closed with `close`."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "ruvllm", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ruvllm.gateway")

    def answered(self, answer: Answer, seconds: float) -> None:
        """One span for the request and one for each stage, in their order, ending now."""
        from opentelemetry.trace import set_span_in_context

        ends = time.time_ns()
        at = ends - int(seconds * 1e9)
        whole = self._tracer.start_span("answer", start_time=at, attributes=_attributes(answer))
        context = set_span_in_context(whole)
        for stage, ms in answer.stage_ms.items():
            span = self._tracer.start_span(_NAMES.get(stage, stage), context, start_time=at)
            at += int(ms * 1e6)
            span.end(at)
        whole.end(ends)

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()


def open_tracing(endpoint: str) -> Tracing | None:
    """None where no endpoint is set.

    Raises:
        SettingsError: the packages are missing.
    """
    if not endpoint:
        return None
    try:
        found = importlib.util.find_spec(_EXPORTER)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise SettingsError(
            f"RUVLLM_OTEL_ENDPOINT: got {endpoint}, but {_EXPORTER} is missing; pip install ruvllm[otel]"
        )
    return Tracing(importlib.import_module(_EXPORTER).OTLPSpanExporter(endpoint=endpoint))


def _attributes(answer: Answer) -> dict[str, Any]:
    """Figures and names, no text."""
    return {
        "ruvllm.request_id": answer.request_id,
        "ruvllm.tier": answer.tier,
        "ruvllm.context_bin": answer.context_bin,
        "ruvllm.decided_by": answer.decision.decided_by,
        "ruvllm.router_version": answer.decision.router_version,
        "ruvllm.hits": len(answer.hits),
        "gen_ai.usage.input_tokens": answer.generation.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.generation.completion_tokens,
    }
