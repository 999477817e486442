"""`python -m flows.deployments`: serves the flows on this machine, on their schedules, until it is stopped."""

from __future__ import annotations

from datetime import timedelta

from prefect import serve
from prefect.schedules import Cron, Interval

from flows.nightly import nightly
from flows.promote import promote_approved
from ruvllm.settings import load_settings


def main() -> None:
    settings = load_settings()
    serve(
        nightly.to_deployment(
            "nightly", schedule=Cron(settings.nightly_cron, timezone=settings.timezone), concurrency_limit=1
        ),
        promote_approved.to_deployment("promote", schedule=Interval(timedelta(minutes=5)), concurrency_limit=1),
        pause_on_shutdown=False,
    )


if __name__ == "__main__":
    main()
