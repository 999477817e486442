"""The flows as deployments: served by one process on this machine (`ruvllm flows serve`), until it is stopped.

`prefect.yaml` holds the same schedules for a work pool; a test compares the two.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect import Flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Interval, Schedule

from flows.attend import attend
from flows.collect import collect
from flows.consolidate import consolidate
from flows.evaluate import evaluate
from flows.maintain import maintain
from flows.nightly import nightly
from flows.promote import promote_approved
from flows.propose import propose
from flows.refine import refine
from flows.report import report
from flows.serve import serve as serve_champion
from flows.train import train
from flows.weekly import health, maintain_weekly
from ruvllm.settings import Settings, load_settings

PROMOTE_EVERY = timedelta(minutes=5)
REFINE_EVERY = timedelta(hours=1)  # a look at how much was rated since; most do nothing
STEPS: tuple[Flow[..., Any], ...] = (
    collect, train, attend, evaluate, propose, consolidate, maintain, serve_champion, report,
)  # fmt: skip  # each alone, by hand, for one cycle


def schedules(settings: Settings) -> dict[str, tuple[Flow[..., Any], Schedule]]:
    """What runs by itself: name of the deployment -> flow and schedule, in the configured time zone."""
    zone = settings.timezone
    return {
        "nightly": (nightly, Cron(settings.nightly_cron, timezone=zone)),
        "promote": (promote_approved, Interval(PROMOTE_EVERY)),
        "refine": (refine, Interval(REFINE_EVERY)),
        "maintain-weekly": (maintain_weekly, Cron("0 4 * * 0", timezone=zone)),
        "health-weekly": (health, Cron("0 5 * * 1", timezone=zone)),
    }


def deployments(settings: Settings) -> list[RunnerDeployment]:
    """Every deployment; a run of one never begins while another of it goes on."""
    scheduled = [
        RunnerDeployment.from_flow(flow, name, schedule=schedule, concurrency_limit=1)
        for name, (flow, schedule) in schedules(settings).items()
    ]
    return scheduled + [RunnerDeployment.from_flow(flow, flow.name, concurrency_limit=1) for flow in STEPS]


def main() -> None:
    settings = load_settings()
    if settings.alert_webhook_file:
        from flows.alarms import ensure_alarms

        ensure_alarms(settings)
    serve(*deployments(settings), pause_on_shutdown=False)


if __name__ == "__main__":
    main()
