"""The log of answers: one line of JSON each, with the request's id and figures, and no text unless all agree to it.

Knows nothing of HTTP. A question is logged where RUVLLM_LOG_PROMPTS asks for it and the request's privacy level allows
it; nothing else ever is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from ruvllm.answering.answer import Answer, Ask
from ruvllm.answering.privacy import level
from ruvllm.serving.keys import Caller
from ruvllm.serving.tracing import Tracing

log = logging.getLogger("ruvllm.answers")


class Journal:
    """Of one gateway."""

    def __init__(self, log_prompts: bool = False, tracings: Sequence[Tracing] = ()) -> None:
        self._log_prompts, self._tracings = log_prompts, tracings

    def answered(self, ask: Ask, answer: Answer, caller: Caller, seconds: float) -> None:
        """A line, and spans where these are collected."""
        log.info("answered", extra={"fields": self._fields(ask, answer, caller, seconds)})
        for tracing in self._tracings:
            tracing.answered(answer, seconds)

    def _fields(self, ask: Ask, answer: Answer, caller: Caller, seconds: float) -> dict[str, object]:
        allowed = level(ask.privacy)
        fields: dict[str, object] = {
            "request_id": answer.request_id,
            "tenant": caller.tenant,
            "key": caller.key_id,
            "tier": answer.tier,
            "context_bin": answer.context_bin,
            "decided_by": answer.decision.decided_by,
            "router_version": answer.decision.router_version,
            "prompt_tokens": answer.generation.prompt_tokens,
            "completion_tokens": answer.generation.completion_tokens,
            "seconds": round(seconds, 4),
            "degraded": list(answer.degraded),
            "writeback": answer.writeback,
        }
        if allowed.logs_writer and ask.writer:
            fields["writer"] = ask.writer
        if self._log_prompts and allowed.logs_text:
            fields |= {"question": ask.question, "answer": answer.text}
        return fields


class JsonLines(logging.Formatter):
    """Each record as one line of JSON; `fields` of its `extra` stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)
