"""`ruvllm flows …`: the served flows, in the foreground. No work of its own."""

from __future__ import annotations

import os

import typer

from ruvllm.commands.console import console
from ruvllm.commands.verbs import plainly, settings_here

app = typer.Typer(no_args_is_help=True, help="The flows: serve their schedules, set their alarms.")


@app.command()
@plainly
def serve() -> None:
    """Serve every flow on its schedule from this process until it is stopped; `ruvllm up` does so in the background."""
    _connect()
    from flows.deployments import main

    main()


@app.command()
@plainly
def alarms() -> None:
    """Have late, failed and stuck runs call the address in RUVLLM_ALERT_WEBHOOK_FILE."""
    settings = settings_here()
    _connect()
    from flows.alarms import ensure_alarms

    for name in ensure_alarms(settings):
        console.print(name)


def _connect() -> None:
    """The Prefect server of PREFECT_API_URL, else ours, started where it does not run; before Prefect is imported."""
    from ruvllm import services

    settings = settings_here()
    os.environ.update({k: v for k, v in services.prefect_environment(settings).items() if k not in os.environ})
    if not os.environ.get("PREFECT_API_URL"):
        os.environ["PREFECT_API_URL"] = services.ensure_prefect(settings)
