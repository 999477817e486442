"""What a night leaves for people: its report as a page, in MLflow beside the candidate. Knows nothing of Prefect."""

from __future__ import annotations

import json
from typing import Any

from ruvllm.database import open_database
from ruvllm.database.pool import Database
from ruvllm.errors import ArtifactError
from ruvllm.learning import cycle as cycles
from ruvllm.router.durable import replace_file
from ruvllm.settings import Settings

Result = dict[str, Any]
PAGE = "night.html"


def report(settings: Settings, cycle_id: str, links: dict[str, str] | None = None) -> Result:
    """Make the night's page, once; it lies with the night's files, and with the candidate's run in MLflow.

    Args:
        links: what the page points to, by name: the flow's run, the version.

    Raises:
        ArtifactError: the page cannot be written.
        RegistryError: MLflow cannot be reached; the page is there all the same, and a resumed night sends it.
    """
    database = open_database(settings)
    try:
        return cycles.once(database, cycle_id, "report", lambda: _publish(settings, database, cycle_id, links or {}))
    finally:
        database.close()


def _publish(settings: Settings, database: Database, cycle_id: str, links: dict[str, str]) -> Result:
    from ruvllm.registry.pages import attach
    from ruvllm.reporting.gather import gather
    from ruvllm.reporting.page import page

    done = cycles.steps_done(database, cycle_id)
    figures: Result = {}
    if "train" in done:
        figures = json.loads((settings.state_dir / done["train"].result["report"]).read_text(encoding="utf-8"))
    html = page(gather(database, cycle_id, figures, links))
    path = settings.state_dir / "cycles" / cycle_id / PAGE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, html.encode())
    except OSError as error:
        raise ArtifactError(
            f"page {path}: {error}; free some space and run the night again, it goes on here"
        ) from error
    if "propose" in done:
        attach(settings, done["propose"].result["run_id"], PAGE, html)
    return {"page": str(path.relative_to(settings.state_dir)), "bytes": len(html.encode())}
