"""`ruvllm flows …`: the served flows, in the foreground. No work of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ruvllm.commands.console import console
from ruvllm.commands.verbs import plainly, settings_here
from ruvllm.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The flows: serve their schedules, set their alarms.")


@app.command()
@plainly
def serve() -> None:
    """Serve every flow on its schedule from this process until it is stopped; `ruvllm up` does so in the background."""
    with _connected():
        from flows.deployments import main  # imports Prefect, which reads its settings when it is imported

        main()


@app.command()
@plainly
def alarms() -> None:
    """Have late, failed and stuck runs call the address in RUVLLM_ALERT_WEBHOOK_FILE."""
    with _connected() as settings:
        from flows.alarms import ensure_alarms

        for name in ensure_alarms(settings):
            console.print(name)


@contextmanager
def _connected() -> Iterator[Settings]:
    """Speaks to the Prefect server of PREFECT_API_URL, else to ours, which is stopped again if this started it."""
    from ruvllm import services

    settings = settings_here()
    os.environ.update({k: v for k, v in services.prefect_environment(settings).items() if k not in os.environ})
    if os.environ.get("PREFECT_API_URL"):
        with services.leaving_nothing():
            yield settings
        return
    with services.prefect_as_found(settings) as api_url:
        os.environ["PREFECT_API_URL"] = api_url
        yield settings
