"""Spans of answers into MLflow, whose server takes OTLP at /v1/traces: the experiment `ruvllm-gateway`.

Never imports mlflow. What cannot be sent is dropped and said once: a trace is worth less than the wait for it.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence

import httpx
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ruvllm.ports import urls
from ruvllm.registry.identities import TRAINER, identity
from ruvllm.settings import Settings

EXPERIMENT = "ruvllm-gateway"
_API = "/api/2.0/mlflow/experiments"
_TIMEOUT_S = 10.0
log = logging.getLogger(__name__)


class MlflowSpans(SpanExporter):
    """An exporter that finds the experiment, or makes it, when spans are first sent. Used by one thread."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SettingsError: an identities file is set that does not hold the trainer, who makes and fills experiments.
        """
        self._server = urls(settings).mlflow.rstrip("/")
        self._who = identity(settings, TRAINER)
        self._exporter: OTLPSpanExporter | None = None
        self._trouble: str | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            exporter = self._exporter or self._opened()
        except (httpx.HTTPError, KeyError, ValueError) as error:
            return self._failed(f"{error or type(error).__name__}")
        if exporter.export(spans) is not SpanExportResult.SUCCESS:
            exporter.shutdown()  # type: ignore[no-untyped-call]
            return self._failed("it took no spans")
        self._exporter, self._trouble = exporter, None
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        if self._exporter is not None:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _failed(self, why: str) -> SpanExportResult:
        self._exporter = None  # the experiment may be gone: looked for anew
        if why != self._trouble:
            log.warning("MLflow: traces are dropped: %s", why)
        self._trouble = why
        return SpanExportResult.FAILURE

    def _opened(self) -> OTLPSpanExporter:
        login = (self._who.username, self._who.password) if self._who else None
        with httpx.Client(base_url=self._server, auth=login, timeout=_TIMEOUT_S) as server:
            experiment = self._experiment(server)
        headers = {"x-mlflow-experiment-id": experiment}
        if login is not None:
            headers["authorization"] = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
        return OTLPSpanExporter(endpoint=f"{self._server}/v1/traces", headers=headers, timeout=_TIMEOUT_S)

    def _experiment(self, server: httpx.Client) -> str:
        found = server.get(f"{_API}/get-by-name", params={"experiment_name": EXPERIMENT})
        if found.status_code == httpx.codes.NOT_FOUND:
            made = server.post(f"{_API}/create", json={"name": EXPERIMENT}).raise_for_status()
            return str(made.json()["experiment_id"])
        return str(found.raise_for_status().json()["experiment"]["experiment_id"])
