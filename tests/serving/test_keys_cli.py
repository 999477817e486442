"""`ruvllm keys`: made, shown once, listed without the key, revoked; errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ruvllm.commands.keys import app
from ruvllm.database.pool import Database
from ruvllm.errors import AuthenticationError
from ruvllm.serving.door import Door
from ruvllm.serving.keys import KeyStore
from ruvllm.settings import Settings


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_a_key_from_its_making_to_its_end(settings: Settings, database: Database) -> None:
    made = run("create", "--name", "editor", "--tenant", "acme", "--scope", "ask", "--requests", "60", "--days", "2")
    assert (made["tenant"], made["scopes"], made["requests_per_minute"]) == ("acme", "ask", 60)
    door = Door(settings, KeyStore(database), "127.0.0.1")
    door.refresh()
    assert door.caller(f"Bearer {made['key']}").tenant == "acme"
    [listed] = run("list")
    assert (listed["id"], listed["state"]) == (made["id"], "valid")
    assert made["key"].rsplit("-", 1)[-1] not in json.dumps(listed)
    assert run("revoke", made["id"])["state"] == "revoked"
    door.refresh()
    with pytest.raises(AuthenticationError, match="was revoked"):
        door.caller(f"Bearer {made['key']}")


def test_a_key_in_a_file_is_its_owners_alone_and_not_shown(tmp_path: Path) -> None:
    out = tmp_path / "key"
    made = run("create", "--out", str(out))
    assert "key" not in made
    assert out.read_text().startswith(f"ruvllm-{made['id']}-")
    assert out.stat().st_mode & 0o077 == 0
    assert CliRunner().invoke(app, ["create", "--out", str(out)]).exit_code == 1  # nothing is written over


def test_what_is_wrong_is_said_in_a_line() -> None:
    for arguments in (["create", "--scope", "root"], ["revoke", "0"], ["create", "--concurrency", "0"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 1
        assert "Traceback" not in done.output
