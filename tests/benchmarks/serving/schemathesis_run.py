"""Schemathesis over every operation of the gateway's own document, with all its checks, and docs/conformance.md of it.

    python -m tests.benchmarks.serving.schemathesis_run --keep FOLDER --examples 1000
    python -m tests.benchmarks.serving.schemathesis_run --keep FOLDER --page docs/conformance.md

The gateway is a process of its own over a real Postgres and memory; its model's words are a unit test's. How many
requests an operation took is what the gateway counted, not what the tool says it sent.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.settings import Settings, load_settings
from tests.benchmarks.memory.report import Report, Target, conditions, page
from tests.serving.consoled import gateway_of
from tests.serving.gateway import serving

NAME = "gateway-conformance"
PHASES = "examples,coverage,fuzzing"
_COMMAND = "python -m tests.benchmarks.serving.schemathesis_run --keep FOLDER"
_PATIENCE_S = 60.0
_COUNTED = re.compile(r'ruvllm_requests_total\{model="[^"]*",route="([^"]+)",status="(\d+)"\} ([\d.e+]+)')
_INTRODUCTION = """
# The gateway against its own OpenAPI document

Made by `python -m tests.benchmarks.serving.schemathesis_run --keep FOLDER --page docs/conformance.md` from the results
of the same command without `--page`; no figure is typed by hand. Schemathesis makes requests that the document allows
and requests that it forbids, and holds every reply against the document: status, media type, headers, body; a request
that is allowed must be taken, one that is forbidden refused. `GET /openapi.json` is what it reads.

One thing the document cannot say, and the tool is told of it: whether the turns of a conversation alternate, whether a
named model is served, whether two fields contradict each other. Such a request is answered 400 or 404, and
`positive_data_acceptance` allows that. And a latency budget may be shorter than any answer: that is a 504, which
`not_a_server_error` allows; 500, 502 and 503 stay failures.
"""
# Schemathesis' own settings: see "One thing the document cannot say" above.
_CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "504"]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _parser().parse_args(arguments)
    results = chosen.keep / "results"
    if chosen.page is not None:
        wholes = [json.loads((results / f"{NAME}.json").read_text(encoding="utf-8"))]
        chosen.page.write_text(page(wholes, _INTRODUCTION), encoding="utf-8")
        return
    if chosen.serve is not None:
        return _serve(chosen.keep, chosen.serve)
    measure(chosen.keep, results, chosen.examples, chosen.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", type=Path, required=True, help="folder for the database, the tool's report, results")
    parser.add_argument("--examples", type=int, default=1000, help="at least, an operation (default 1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, help="write the page of the results that are there, and measure nothing")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # the gateway's own process; a file for its URL
    return parser


def measure(keep: Path, results: Path, examples: int, seed: int) -> None:
    """Run the tool once, write what came of it."""
    report = Report(NAME, results, conditions(command=f"{_COMMAND} --examples {examples}", n=examples))
    report.conditions |= {"examples an operation": examples, "seed": seed, "phases": PHASES}
    with _gateway(keep) as (url, process):
        before, began = process.memory_info().rss, time.monotonic()
        document = httpx.get(f"{url}/openapi.json", trust_env=False).json()
        told = _tried(url, keep, examples, seed)
        seconds, alive = time.monotonic() - began, process.is_running()
        counted = _counted(url)
        grown = (process.memory_info().rss - before) / 2**20
    report.conditions |= {"schemathesis": told["schemathesis_version"], "minutes": round(seconds / 60, 1)}
    _add_operations(report, document, counted, told)
    _add_failures(report, told)
    _add_targets(report, counted, told, examples, alive)
    report.conditions["the process grew by, MiB"] = round(grown)
    report.write()


@contextmanager
def _gateway(keep: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Its URL and its process."""
    shutil.rmtree(keep / "state", ignore_errors=True)
    keep.mkdir(parents=True, exist_ok=True)
    told = keep / "url"
    told.unlink(missing_ok=True)
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--keep", str(keep), "--serve", str(told)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield _url(told, started), psutil.Process(started.pid)
    finally:
        started.communicate()  # its standard input ends, and so does it


def _url(told: Path, started: subprocess.Popen[bytes]) -> str:
    ends = time.monotonic() + _PATIENCE_S
    while not told.exists():
        if started.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"the gateway's process did not start within {_PATIENCE_S:.0f} s; its errors are above")
        time.sleep(0.1)
    return told.read_text(encoding="utf-8")


def _serve(keep: Path, told: Path) -> None:
    """The gateway, until standard input ends."""
    settings = load_settings({}, state_dir=keep / "state", cache_dir=keep / "cache", key_concurrency=64)
    server = EmbeddedPostgres(settings)
    server.ensure()
    try:
        _serve_on(server.create_database("conformance"), settings, told)
    finally:
        server.stop()


def _serve_on(dsn: str, settings: Settings, told: Path) -> None:
    upgrade(dsn, "test-encoder", 384)
    database = Database(dsn)
    with serving(settings, gateway_of(database, settings, lambda prompt: "Accra is the capital")) as url:
        part = told.with_suffix(".part")
        part.write_text(url, encoding="utf-8")
        part.rename(told)
        sys.stdin.read()
    database.close()


def _tried(url: str, keep: Path, examples: int, seed: int) -> dict[str, Any]:
    """The tool's own report."""
    config, told = keep / "schemathesis.toml", keep / "schemathesis.json"
    config.write_text(_CONFIG, encoding="utf-8")
    told.unlink(missing_ok=True)
    command = [
        _program(), "--config-file", str(config), "run", f"{url}/openapi.json",
        "--checks", "all", "--mode", "all", "--phases", PHASES, "--max-examples", str(examples), "--seed", str(seed),
        "--continue-on-failure", "--generation-database", "none", "--report", "json", "--report-json-path", str(told),
        "--request-timeout", "30", "--suppress-health-check", "all", "--no-color",
    ]  # fmt: skip
    subprocess.run(command, check=False, cwd=keep, stdout=(keep / "schemathesis.log").open("w"))
    if not told.exists():
        raise RuntimeError(f"schemathesis wrote no report; {keep / 'schemathesis.log'} says why")
    whole: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return whole


def _program() -> str:
    """Beside this interpreter, else on PATH: the tool may have an environment of its own."""
    beside = Path(sys.executable).with_name("schemathesis")
    found = str(beside) if beside.exists() else shutil.which("schemathesis")
    if found is None:
        raise RuntimeError("schemathesis is not installed: pip install 'ruvllm[conformance]'")
    return found


def _counted(url: str) -> dict[str, Counter[str]]:
    """Requests by route and status, as the gateway counted them."""
    found: dict[str, Counter[str]] = {}
    for route, status, count in _COUNTED.findall(httpx.get(f"{url}/metrics", trust_env=False).text):
        found.setdefault(route, Counter())[status] += int(float(count))
    return found


def _add_operations(
    report: Report, document: dict[str, Any], counted: dict[str, Counter[str]], told: dict[str, Any]
) -> None:
    """A row an operation; two methods of one path share the gateway's count."""
    failed = Counter(name for failure in told["failures"] for name in failure["operations"])
    rows = []
    for path, operations in document["paths"].items():
        statuses = counted.get(path) or counted.get(path.replace("{model}", "{model:path}")) or Counter()
        kinds = [sum(n for status, n in statuses.items() if status[0] == kind) for kind in "245"]
        for method in operations:
            name = f"{method.upper()} {path}"
            rows.append((name, statuses.total(), *kinds, failed[name]))
    note = "As the gateway counted them, by path; methods that a path does not have are in its count, answered 405."
    report.table("Requests", ("operation", "requests", "2xx", "4xx", "5xx", "kinds of failure"), rows, note)


def _add_failures(report: Report, told: dict[str, Any]) -> None:
    rows = [
        (failure["title"], failure["severity"], failure["count"], ", ".join(failure["operations"]))
        for failure in told["failures"]
    ]
    cases = told["test_cases"]
    note = f"{cases['generated']} cases generated, {cases['with_failures']} with failures."
    report.table("Failures", ("what", "severity", "cases", "where"), rows, note)


def _add_targets(
    report: Report, counted: dict[str, Counter[str]], told: dict[str, Any], examples: int, alive: bool
) -> None:
    internal = sum(statuses["500"] for statuses in counted.values())
    violations = [each for each in told["failures"] if each["type"] != "server_error"]
    tested = told["operations"]
    report.targets += [
        Target("answers of 500", "0", str(internal), internal == 0),
        Target("schema and status violations", "0 kinds", f"{len(violations)} kinds", not violations),
        Target("the gateway's process lives", "yes", "yes" if alive else "no", alive),
        Target(
            "operations tried, all checks", "all", f"{tested['tested']} of {tested['total']}",
            tested["tested"] == tested["total"] and told["complete"],
        ),
        Target("examples an operation", "1000", str(examples), examples >= 1000),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
