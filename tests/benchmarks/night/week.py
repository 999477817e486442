"""A week in an afternoon: seven nights on the packaged ladder, with a rejected, approved and rolled-back promotion.

    python -m tests.benchmarks.night.week FOLDER docs/week.md        (about 25 minutes on two idle cores)

FOLDER is the state directory: a run that was stopped goes on where it was. Night 3 is rejected, night 5 is rolled back,
the others are approved by name; the page holds the trends, every version, every change of champion and the cookbook's
answers. `--nights 2 --rejected 1 --rolled-back 2` is a short week that shows whether this works at all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from ruvllm.database import analysts, database_url, open_database
from ruvllm.reporting.charts import trends as trend_charts
from ruvllm.reporting.gather import every_night
from ruvllm.reporting.records import Interval, Night
from ruvllm.services import down
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings
from tests.benchmarks.memory.report import conditions

NIGHTS, REJECTED, ROLLED_BACK = 7, 3, 5
BUDGET_S = 90.0
WORK = ("ingest", "day", "collect", "train", "attend", "consolidate", "serve")  # models answer, embed or are trained
WANTED_S = 60.0
_LOGIN = "week"
_WHY = ("--by", _LOGIN, "--reason", "shown for the record")


@dataclass(frozen=True)
class Week:
    """What is to be run: how many nights, which one is rejected, which one rolled back, seconds of each collection."""

    nights: int = NIGHTS
    rejected: int = REJECTED
    rolled_back: int = ROLLED_BACK
    budget_s: float = BUDGET_S


def ruvllm(environment: dict[str, str], *arguments: str) -> Any:
    """What a verb prints with --json; None without."""
    done = subprocess.run(
        [sys.executable, "-c", "from ruvllm.cli import app; app()", *arguments], env=environment, cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    if "--json" not in arguments:
        return None
    return json.loads(done.stdout)


def run_week(environment: dict[str, str], week: Week) -> None:
    """Run what is missing of the week; a night that was cut off is taken up by its own."""
    for night in range(finished(environment) + 1, week.nights + 1):
        approve = [] if night == week.rejected else ["--approve-as", _LOGIN]
        command = ("cycle", "--accept-gemma-terms", "--budget", str(week.budget_s), "--json", *approve)
        begun = time.monotonic()
        steps = ruvllm(environment, *command)["steps"]
        _keep_time(environment, night, time.monotonic() - begun, steps)
        if night == week.rejected:
            ruvllm(environment, "registry", "reject", steps["propose"]["version"], *_WHY)
        if night == week.rolled_back and steps["promote"]["promoted"]:
            ruvllm(environment, "registry", "rollback", *_WHY)


def _keep_time(environment: dict[str, str], night: int, wall_s: float, steps: dict[str, Any]) -> None:
    """What the command took beside its steps' own seconds; a night that was taken up again has no such figure."""
    path = Path(environment["RUVLLM_STATE_DIR"]) / "week.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    work = sum(step["seconds_taken"] for name, step in steps.items() if name in WORK)
    every = sum(step["seconds_taken"] for step in steps.values())
    if every <= wall_s:
        times[str(night)] = {"wall_s": wall_s, "models_s": work, "steps_s": every - work, "between_s": wall_s - every}
        path.write_text(json.dumps(times, indent=1), encoding="utf-8")


def orchestration(folder: Path) -> list[str]:
    """Everything but models and training, night by night, against its goal."""
    path = folder / "week.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = [
        (night, *(f"{found[name]:.1f}" for name in ("wall_s", "models_s", "steps_s", "between_s")),
         f"{found['steps_s'] + found['between_s']:.1f}")
        for night, found in times.items()
    ]  # fmt: skip
    if not rows:
        return ["## Orchestration", "", "No night was run in one go: not measured.", ""]
    middle = statistics.median(found["steps_s"] + found["between_s"] for found in times.values())
    verdict = "met" if middle < WANTED_S else "**missed**"
    said = f"Median of {len(rows)} nights beside them: {middle:.1f} s, wanted under {WANTED_S:g} s: {verdict}."
    columns = ("night", "whole", "models and training", "other steps", "between steps", "orchestration")
    return ["## Orchestration", "", f"Seconds. Models and training: the steps {', '.join(WORK)}. {said}", "",
            *_table(columns, rows)]  # fmt: skip


def finished(environment: dict[str, str]) -> int:
    """Nights that came to their end already; what was to follow on the last one is not asked for again."""
    database = open_database(load_settings(environment))
    try:
        with database.transaction() as connection:
            row = connection.execute(
                "SELECT count(*)::int FROM learning.cycles WHERE finished_at IS NOT NULL"
            ).fetchone()
    finally:
        database.close()
    return row[0] if row else 0


def _nights(settings: Settings) -> list[Night]:
    database = open_database(settings)
    try:
        return every_night(database)
    finally:
        database.close()


def trends(settings: Settings, path: Path) -> list[str]:
    """The nights side by side, as a table and as the charts of the last night's page, drawn beside `path`."""
    nights = _nights(settings)
    drawn = []
    for name, svg in trend_charts(nights).items():
        chart = path.with_name(f"{path.stem}-{name}.svg")
        chart.write_text(svg, encoding="utf-8")
        drawn.append(f"![{name}]({chart.name})")
    columns = ("night", "questions", "regret", "held-out", "forgetting", "of earlier", "nodes", "edges", "merged",
               "version", "promoted")  # fmt: skip
    rows = [
        (n.night, n.questions, *_interval(n.regret), *_interval(n.forgetting), n.nodes, n.edges, n.merged, n.version,
         "yes" if n.promoted else "no")
        for n in nights
    ]  # fmt: skip
    return ["## Trends", "", "Intervals are of 95 %; `held-out` and `of earlier` are the number of questions.", "",
            *_table(columns, rows), *drawn, ""]  # fmt: skip


def _interval(found: Interval | None) -> tuple[str, int]:
    return (f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})", found.n) if found else ("none", 0)


def reviews(environment: dict[str, str]) -> list[str]:
    """Every version in MLflow, and every row of the ledger."""
    lines = []
    for title, verb in (("Versions", "status"), ("Changes of champion", "history")):
        found = ruvllm(environment, "registry", verb, "--json")
        columns = tuple(found[0]) if found else ()
        lines += [f"## {title}", "", *_table(columns, [tuple(row.values()) for row in found])]
    return lines


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [list(columns), ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]


def cookbook() -> list[tuple[str, str]]:
    text = (PROJECT_ROOT / "docs" / "analysts.md").read_text(encoding="utf-8")
    return re.findall(r"^(\d+\. [^\n]+)\n\n```sql\n(.*?)```", text, re.MULTILINE | re.DOTALL)


def answers(dsn: str, folder: Path) -> list[str]:
    """The cookbook's queries with what an analyst's login gets, ten rows each."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        access = analysts.add(owner, _LOGIN, "default", folder / "analysts")
    lines = ["## The cookbook", "", "The first ten rows of each answer.", ""]
    address = psycopg.conninfo.make_conninfo(dsn, user=_LOGIN, password="", passfile=str(access.password_file))
    with psycopg.connect(address, autocommit=True) as session:
        for question, query in cookbook():
            cursor = session.execute(query.encode())
            names = [column.name for column in cursor.description or ()]
            rows = cursor.fetchmany(10)
            lines += [f"### {question}", "", *_table(names, rows)]
    return lines


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")[:120]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run a week of nights and write a page of it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--nights", type=int, default=NIGHTS)
    parser.add_argument("--rejected", type=int, default=REJECTED, help="the night whose candidate is rejected")
    parser.add_argument("--rolled-back", type=int, default=ROLLED_BACK, help="the night whose champion is taken back")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of each night's collection")
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    environment = {**os.environ, "RUVLLM_STATE_DIR": str(folder), "RUVLLM_LADDER": "packaged"}
    settings = load_settings(environment)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a night that runs is ended, and so are the servers
    try:
        run_week(environment, Week(given.nights, given.rejected, given.rolled_back, given.budget))
        write_page(given.page, environment, settings)
    finally:
        down(settings)


def write_page(path: Path, environment: dict[str, str], settings: Settings) -> None:
    """The page, and beside it the last night's own."""
    shutil.copyfile(max((settings.state_dir / "cycles").glob("night-*/night.html")), path.with_suffix(".html"))
    said = ", ".join(f"{name} {value}" for name, value in conditions().items())
    lines = ["# A week of nights", "", f"`python -m tests.benchmarks.night.week FOLDER {path}`; {said}.", "",
             f"The last night's own page: [{path.stem}.html]({path.stem}.html).", ""]  # fmt: skip
    lines += [
        *trends(settings, path),
        *orchestration(settings.state_dir),
        *reviews(environment),
        *answers(database_url(settings), settings.state_dir),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
