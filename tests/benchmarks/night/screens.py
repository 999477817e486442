"""Screenshots of a finished night for the README: its run in Prefect, its version in MLflow, its report.

    python -m tests.benchmarks.night.screens FOLDER docs      (FOLDER: the state directory of `week`; needs chromium)

The servers are started on FOLDER for it and stopped again; the pages are what a reviewer sees, in a headless browser.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from ruvllm import services
from ruvllm.errors import ProcessError
from ruvllm.registry.tracking import MODEL
from ruvllm.settings import Settings, load_settings

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_WINDOW = "1280,1500"
_SETTLE_MS = 20_000  # of the page's own clock: both pages draw after they have asked their server
_BOUND_S = 180.0


def browser() -> str:
    """Raises ProcessError where there is none."""
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise ProcessError(f"no browser: none of {', '.join(_BROWSERS)} is on the PATH; apt-get install chromium")
    return found


def shoot(url: str, path: Path) -> None:
    """A PNG of what `url` shows.

    Raises:
        ProcessError: the browser left none.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={profile}", f"--window-size={_WINDOW}", f"--virtual-time-budget={_SETTLE_MS}",
            f"--screenshot={path.absolute()}", url,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BOUND_S, check=False)
    if not path.exists():
        raise ProcessError(f"{url}: the browser made no picture; it said {done.stderr[-500:]}")


@contextmanager
def servers(settings: Settings) -> Iterator[services.Urls]:
    try:
        for name in ("prefect", "mlflow"):
            services.start_service(settings, name)
        yield services.urls(settings)
    finally:
        services.down(settings)


def last_run(prefect: str) -> str:
    """The id of the newest nightly run that came to its end."""
    wanted = {
        "flows": {"name": {"any_": ["nightly"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        "sort": "START_TIME_DESC", "limit": 1,
    }  # fmt: skip
    found = httpx.post(f"{prefect}/api/flow_runs/filter", json=wanted, trust_env=False).raise_for_status().json()
    if not found:
        raise ProcessError(f"{prefect}: no nightly run was completed there; run a night (ruvllm cycle)")
    return str(found[0]["id"])


def last_version(mlflow: str) -> str:
    found = httpx.get(
        f"{mlflow}/api/2.0/mlflow/registered-models/get", params={"name": MODEL}, trust_env=False
    ).raise_for_status()
    return str(max(int(version["version"]) for version in found.json()["registered_model"]["latest_versions"]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Take the README's screenshots.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("docs", type=Path)
    given = parser.parse_args(arguments)
    browser()
    settings = load_settings({**os.environ, "RUVLLM_STATE_DIR": str(given.folder.absolute())})
    report = max((settings.state_dir / "cycles").glob("night-*/night.html"))
    with servers(settings) as urls:
        pages = {
            "prefect-run": f"{urls.prefect}/runs/flow-run/{last_run(urls.prefect)}",
            "mlflow-version": f"{urls.mlflow}/#/models/{MODEL}/versions/{last_version(urls.mlflow)}",
            "night-report": report.as_uri(),
        }
        for name, url in pages.items():
            shoot(url, given.docs / f"{name}.png")
            print(given.docs / f"{name}.png", (given.docs / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
