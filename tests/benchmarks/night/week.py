"""A week in an afternoon: seven nights on the packaged ladder, with a rejected, approved and rolled-back promotion.

    python -m tests.benchmarks.night.week FOLDER docs/week.md        (about 25 minutes on two idle cores)

FOLDER is the state directory: a run that was stopped goes on where it was. Night 3 is rejected, night 5 is rolled back,
the others are approved by name; the page holds the trends, the cookbook's answers and the last night's figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from ruvllm.database import analysts, database_url
from ruvllm.settings import PROJECT_ROOT, load_settings
from tests.benchmarks.memory.report import conditions

NIGHTS, REJECTED, ROLLED_BACK = 7, 3, 5
BUDGET_S = 90
_LOGIN = "week"


def ruvllm(environment: dict[str, str], *arguments: str) -> Any:
    """What a verb prints with --json."""
    done = subprocess.run(
        [sys.executable, "-c", "from ruvllm.cli import app; app()", *arguments], env=environment, cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout) if "--json" in arguments else None


def nights(environment: dict[str, str]) -> None:
    """Run what is missing of the week."""
    begun = int(os.environ.get("WEEK_FROM", "1"))
    for night in range(begun, NIGHTS + 1):
        approve = [] if night == REJECTED else ["--approve-as", "week"]
        result = ruvllm(environment, "cycle", "--accept-gemma-terms", "--budget", str(BUDGET_S), "--json", *approve)
        version = result["steps"]["propose"]["version"]
        if night == REJECTED:
            ruvllm(environment, "registry", "reject", version, "--by", "week", "--reason", "shown for the record")
        if night == ROLLED_BACK and result["steps"]["promote"]["promoted"]:
            ruvllm(environment, "registry", "rollback", "--by", "week", "--reason", "shown for the record")


def cookbook() -> list[tuple[str, str]]:
    text = (PROJECT_ROOT / "docs" / "analysts.md").read_text(encoding="utf-8")
    return re.findall(r"^(\d+\. [^\n]+)\n\n```sql\n(.*?)```", text, re.MULTILINE | re.DOTALL)


def answers(dsn: str, folder: Path) -> list[str]:
    """The cookbook's queries with what an analyst's login gets, ten rows each."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        access = analysts.add(owner, _LOGIN, "default", folder / "analysts")
    lines = []
    address = psycopg.conninfo.make_conninfo(dsn, user=_LOGIN, password="", passfile=str(access.password_file))
    with psycopg.connect(address, autocommit=True) as session:
        for question, query in cookbook():
            cursor = session.execute(query.encode())
            names = [column.name for column in cursor.description or ()]
            rows = cursor.fetchmany(10)
            lines += [f"### {question}", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows] + [""]
    return lines


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")[:120]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run a week of nights and write a page of it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    environment = {**os.environ, "RUVLLM_STATE_DIR": str(folder), "RUVLLM_LADDER": "packaged"}
    nights(environment)
    settings = load_settings(environment)
    pages = sorted((folder / "cycles").glob("*/night.html"))
    shutil.copyfile(pages[-1], given.page.with_suffix(".html"))
    said = ", ".join(f"{name} {value}" for name, value in conditions().items())
    head = ["# A week of nights", "", f"`python -m tests.benchmarks.night.week FOLDER {given.page}`; {said}.", "",
            f"The last night's own page: [{given.page.stem}.html]({given.page.stem}.html).", ""]  # fmt: skip
    given.page.write_text("\n".join([*head, *answers(database_url(settings), folder)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
