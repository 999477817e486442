"""Pictures of the console for the README, of a real gateway's real answers: docs/console-*.png.

    python -m tests.benchmarks.serving.console_pictures docs                  # of this checkout's state
    python -m tests.benchmarks.serving.console_pictures docs --url http://127.0.0.1:8080

Wants playwright and a Chromium. Without `--url` the gateway of this checkout is started, and stopped behind it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ruvllm.services import gateway_running
from ruvllm.settings import load_settings

QUESTIONS = ("What is the capital of Ghana?", "Which languages are spoken in Iceland?")
SCHEMES = ("light", "dark")
MOST_BYTES = 300_000
_PATIENCE_MS = 240_000  # the first answer waits for its model
_SIZE = {"width": 1360, "height": 860}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", help="of a gateway that runs; else this checkout's own is started")
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        url = chosen.url or stack.enter_context(gateway_running(load_settings()))
        for picture in take(url, chosen.folder):
            print(picture, picture.stat().st_size)


def take(url: str, folder: Path) -> list[Path]:
    """Both pages in both schemes.

    Raises:
        ValueError: a picture is larger than it may be.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = str(own) if own.exists() else shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=found)
        taken = [path for scheme in SCHEMES for path in _in_scheme(browser, url, folder, scheme)]
        browser.close()
    large = [path.name for path in taken if path.stat().st_size > MOST_BYTES]
    if large:
        raise ValueError(f"{', '.join(large)}: larger than {MOST_BYTES} bytes; lower the scale")
    return taken


def _in_scheme(browser: Any, url: str, folder: Path, scheme: str) -> list[Path]:
    context = browser.new_context(viewport=_SIZE, device_scale_factor=1.25, color_scheme=scheme)
    context.set_default_timeout(_PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{url}/console")
    for number, question in enumerate(QUESTIONS):
        page.locator("#question").fill(question)
        page.keyboard.press("Enter")
        page.locator(".below .tier").nth(number).wait_for()
    page.locator('#why [data-ready="yes"]').wait_for()
    asking = folder / f"console-{scheme}.png"
    page.screenshot(path=asking)
    page.get_by_role("link", name="Running state").click()
    page.locator(".card .stack").wait_for()  # read anew: the answers above are counted
    running = folder / f"console-running-{scheme}.png"
    page.screenshot(path=running)
    context.close()
    return [asking, running]


if __name__ == "__main__":
    sys.exit(main())
