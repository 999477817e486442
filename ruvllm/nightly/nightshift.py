"""The CLI's door to the flows: runs the night here against a real Prefect server, and stops what it started."""

from __future__ import annotations

import os
from typing import Any

from ruvllm import progress, services
from ruvllm.settings import Settings


def run_night(
    settings: Settings, questions: int, budget_s: float | None, approve_as: str, sample: int | None = None
) -> dict[str, Any]:
    """One nightly flow run; its result. Services that ran before go on running, the others are stopped after.

    Raises:
        KeyboardInterrupt: SIGTERM or SIGHUP came; what was started is stopped, and the night can be taken up again.
    """
    show = progress.stage("Starting Postgres and the Prefect server")
    show(0, 1)
    with services.prefect_as_found(settings) as api_url:
        show(1, 1, api_url)
        os.environ.update(services.prefect_environment(settings), PREFECT_API_URL=api_url)
        # the bars and the closing error say it here; Prefect's pages keep every log line
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        from flows.nightly import run_here  # imports Prefect, which reads its settings when it is imported

        result: dict[str, Any] = run_here(questions, budget_s, approve_as, sample)
    return result
