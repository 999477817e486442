"""The page goes beside the candidate in MLflow; where that is away the page is kept, and sent by the resumed night."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from ruvllm.errors import ArtifactError, RegistryError
from ruvllm.nightly import publishing
from ruvllm.registry import pages
from ruvllm.settings import Settings
from tests.analytics.analytics_rows import add_night


@pytest.fixture
def night(settings: Settings, database_url: str) -> tuple[Settings, str]:
    """A night whose candidate was registered, with its report.json."""
    here = replace(settings, database_url=database_url)
    with psycopg.connect(database_url) as owner:
        cycle_id = add_night(owner, "default", 1)
        owner.execute(
            "INSERT INTO learning.steps (cycle_id, tenant, step, result, seconds)"
            " VALUES (%s, 'default', 'train', %s, 1)",
            [cycle_id, json.dumps({"report": "cycles/report.json"})],
        )
    (here.state_dir / "cycles").mkdir(parents=True)
    (here.state_dir / "cycles" / "report.json").write_text('{"n_test": 57, "n_train": 105}')
    return here, cycle_id


def test_a_page_that_could_not_be_sent_is_kept_and_sent_later_once(
    night: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, cycle_id = night
    away = replace(settings, mlflow_tracking_uri="http://127.0.0.1:9")
    with pytest.raises(RegistryError, match="MLflow at http://127"):
        publishing.report(away, cycle_id)
    page = settings.state_dir / "cycles" / cycle_id / "night.html"
    assert "Night 1" in page.read_text()

    sent: list[tuple[str, str, str]] = []
    monkeypatch.setattr(pages, "attach", lambda _, run, name, html: sent.append((run, name, html)))
    first = publishing.report(settings, cycle_id, {"flow run": "http://127.0.0.1:4200/runs/7"})
    assert publishing.report(settings, cycle_id) == first  # a resumed night sends nothing twice
    assert sent == [("run", "night.html", page.read_text())]
    assert "http://127.0.0.1:4200/runs/7" in page.read_text()
    assert Path(first["page"]) == page.relative_to(settings.state_dir)


def test_a_full_disk_is_named_and_the_step_is_not_done(
    night: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, cycle_id = night

    def full(path: Path, _: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pages, "attach", lambda *_: None)
    with monkeypatch.context() as disk:
        disk.setattr(publishing, "replace_file", full)
        with pytest.raises(ArtifactError, match=r"No space left on device.*free some space"):
            publishing.report(settings, cycle_id)
    assert publishing.report(settings, cycle_id)["bytes"] > 1000
