"""Screenshots of a finished night for the README: its run in Prefect, its version in MLflow, its report.

    python -m tests.benchmarks.night.screens FOLDER docs      (FOLDER: the state directory of `week`)

Wants playwright (extra `browser`) and a Chromium. The servers are started on FOLDER for it and stopped again; the pages
are what a reviewer sees, in a headless browser, without MLflow's assistant and its coloured background.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from ruvllm import services
from ruvllm.errors import ProcessError
from ruvllm.registry.tracking import MODEL
from ruvllm.settings import Settings, load_settings

SIZES = {"prefect-run": (1280, 860), "mlflow-version": (1280, 1240), "night-report": (1280, 1240)}
MOST_BYTES = 200_000
_PATIENCE_MS = 120_000
_FOLDED = ".assistant-fab-label"
_PLAIN = (
    f"button:has({_FOLDED}), {_FOLDED} {{ display: none !important; }}"
    + "* { background-image: none !important; animation: none !important; transition: none !important; }"
)


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's own Chromium, or the machine's.

    Raises:
        ProcessError: one of the two is not there.
    """
    try:
        from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ProcessError("no playwright: pip install 'ruvllm[browser]'") from error
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = str(own) if own.exists() else shutil.which("chromium")
        if found is None:
            raise ProcessError("no browser: chromium is not on the PATH; playwright install chromium, or apt-get")
        opened = playwright.chromium.launch(executable_path=found)
        yield opened
        opened.close()


def shoot(opened: Any, name: str, url: str, path: Path) -> None:
    """A PNG of what `url` shows once it has drawn what the picture is for.

    Raises:
        ProcessError: the picture is larger than a README wants it.
    """
    width, height = SIZES[name]
    page = opened.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(_PATIENCE_MS)
    page.goto(url)
    _READY[name](page)
    page.add_style_tag(content=_PLAIN)
    page.screenshot(path=path)
    page.close()
    _fewer_colours(path)
    if path.stat().st_size > MOST_BYTES:
        raise ProcessError(f"{path}: {path.stat().st_size} bytes, want {MOST_BYTES} at most; make its window smaller")


def _fewer_colours(path: Path) -> None:
    """128 of them: the pages are text, lines and bars."""
    from PIL import Image  # matplotlib brings it

    with Image.open(path) as picture:
        fewer = picture.convert("RGB").quantize(128)
    fewer.save(path, optimize=True)


def _prefect_ready(page: Any) -> None:
    """The log has its lines, and the graph all that it asks for."""
    page.get_by_text("Finished in state").first.wait_for()
    page.wait_for_load_state("networkidle")


def _mlflow_ready(page: Any) -> None:
    """The gate table is there, and the panel of the assistant is not."""
    page.get_by_text("bundle verifies").first.wait_for()
    assistant, folded = page.get_by_text("MLflow Assistant"), page.locator(_FOLDED)
    if assistant.count() and not folded.count():
        beside = assistant.locator("xpath=ancestor::*[.//button][1]").locator("button")
        beside.last.click()  # closes it; a button in a corner stays, which the picture's style hides
        folded.first.wait_for()


def _report_ready(page: Any) -> None:
    page.get_by_text("In short").first.wait_for()


_READY = {"prefect-run": _prefect_ready, "mlflow-version": _mlflow_ready, "night-report": _report_ready}


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
    settings = load_settings({**os.environ, "RUVLLM_STATE_DIR": str(given.folder.absolute())})
    report = max((settings.state_dir / "cycles").glob("night-*/night.html"))
    with ExitStack() as stack:
        opened = stack.enter_context(browser())
        urls = stack.enter_context(servers(settings))
        pages = {
            "prefect-run": f"{urls.prefect}/runs/flow-run/{last_run(urls.prefect)}",
            "mlflow-version": f"{urls.mlflow}/#/models/{MODEL}/versions/{last_version(urls.mlflow)}",
            "night-report": report.as_uri(),
        }
        for name, url in pages.items():
            shoot(opened, name, url, given.docs / f"{name}.png")
            print(given.docs / f"{name}.png", (given.docs / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
