"""OpenTelemetry spans of answers, where an endpoint or MLflow is to have them; made from the times an answer carries.

Knows nothing of HTTP. Without a place for spans, OpenTelemetry is not imported.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ruvllm import __version__
from ruvllm.answering.answer import Answer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from ruvllm.settings import Settings

_NAMES = {"store": "write back"}  # stage -> span, where they differ


class Tracing:
    """Sends the spans of a `share` in [0, 1] of answers to one place, in the background. Closed with `close`."""

    def __init__(self, exporter: SpanExporter, share: float = 1.0) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

        resource = Resource.create({"service.name": "ruvllm", "service.version": __version__})
        self._provider = TracerProvider(TraceIdRatioBased(share), resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ruvllm.gateway")

    def answered(self, answer: Answer, seconds: float) -> None:
        """One span for the request and one for each stage, in their order, ending now."""
        from opentelemetry.trace import set_span_in_context

        ends = time.time_ns()
        at = ends - int(seconds * 1e9)
        whole = self._tracer.start_span("answer", start_time=at, attributes=_attributes(answer))
        if not whole.is_recording():  # not of the share
            return
        context = set_span_in_context(whole)
        for stage, ms in answer.stage_ms.items():
            span = self._tracer.start_span(_NAMES.get(stage, stage), context, start_time=at)
            at += int(ms * 1e6)
            span.end(at)
        whole.end(ends)

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()


def open_tracings(settings: Settings) -> tuple[Tracing, ...]:
    """One for each place that the settings name: RUVLLM_OTEL_ENDPOINT for every answer, MLflow for RUVLLM_TRACE_SHARE.

    Raises:
        SettingsError: MLflow wants a name, and the identities file does not hold the one that sends traces.
    """
    opened = []
    if settings.otel_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        opened.append(Tracing(OTLPSpanExporter(endpoint=settings.otel_endpoint)))
    if settings.trace_share:
        from ruvllm.registry.traces import MlflowSpans

        opened.append(Tracing(MlflowSpans(settings), settings.trace_share))
    return tuple(opened)


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
