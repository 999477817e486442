"""A program that serves one flow, by a cron of seconds: every run writes a line. For test_deployments.py."""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, serve
from prefect.schedules import Cron


@flow(name="tick")
def tick(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("ran\n")


if __name__ == "__main__":
    # the sixth field is of seconds
    serve(tick.to_deployment("tick", schedule=Cron("* * * * * */2", parameters={"path": sys.argv[1]})), limit=1)
