"""What is read out of the files of infra/: documents, containers, and the names of the gateway's metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

from ruvllm.cli import app
from ruvllm.commands import backup
from ruvllm.memory.replica.options import ReplicaState
from ruvllm.memory.retrieval.cache import CacheState
from ruvllm.memory.retrieval.reading import ReadingState
from ruvllm.serving.metrics import Metrics
from ruvllm.settings import PROJECT_ROOT

INFRA = PROJECT_ROOT / "infra"
_SERIES = re.compile(r"\b(?:ruvllm_\w+|up\b|node_\w+|vllm:\w+)")
_KINDS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def series_given() -> set[str]:
    """The name of every series that a gateway with a replica and models gives, and Prometheus' own `up`."""
    metrics = Metrics()
    replica = ReplicaState(**dict.fromkeys(ReplicaState.__dataclass_fields__, 1))
    metrics.watch_memory(lambda: ReadingState(replica, {"cold": 1}, CacheState(0, 0, 0)))
    metrics.watch_models(list)
    found = {"up"}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", metrics.render().decode(), re.MULTILINE):
        found |= {name + end for end in _KINDS.get(kind, ("",))}
    return found


def series_named(expression: str) -> set[str]:
    """The series that a PromQL expression asks for; labels and the words within quotes are none."""
    return set(_SERIES.findall(re.sub(r'"[^"]*"', "", expression)))


def verbs_named(text: str) -> Iterator[tuple[str, ...]]:
    """Each `ruvllm verb …` of a text, as a tuple of words up to the first that is no plain word."""
    for words in re.findall(r"\bruvllm((?: [a-z][a-z-]*)+)", text):
        yield tuple(words.split())


def command_tree() -> dict[str, Any]:
    """The commands of `ruvllm` by name; those of a group are in its `commands`."""
    backups = typer.Typer()
    backup.add_to(backups, typer.Typer())
    found: dict[str, Any] = {}
    for each in (backups, app):
        root: Any = typer.main.get_command(each)
        found |= root.commands
    return found
