"""Reads a file of outcomes: one JSON object a line, plain or gzipped. Knows nothing of features, splits or models.

    {"id": "q1", "query": "…", "domain": "maths", "scores": [0.4, null], "cost_usd": [3e-5, null], "split": "train"}

Beside NAME.jsonl(.gz) lies NAME.meta.json with `models` (what `scores` is aligned with) and, where known,
`price_per_mtok` ({model: [input, output]} in USD). Costs come from `cost` or `cost_usd`; else from prices and
`out_tokens`; else from prices alone (USD a million tokens, the same for every query); else from `out_tokens`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ruvllm.errors import LearningError
from ruvllm.learning.outcomes.features import tokens_of
from ruvllm.learning.outcomes.records import MAX_TIERS, MIN_TIERS, NO_SPLIT, TEST, TRAIN, OutcomeSet

Price = tuple[float, float]  # USD a million tokens, input and output

_SPLITS = {"train": TRAIN, "val": TRAIN, "validation": TRAIN, "test": TEST, None: NO_SPLIT, "": NO_SPLIT}
_LONGEST_LINE = 1_000_000  # characters; a line of a file is read whole


@dataclass(frozen=True)
class Choice:
    """Which models of a file are the tiers, and what they cost where the file does not say."""

    tiers: tuple[str, ...] = ()  # none: all of them, if there are at most four
    prices: Mapping[str, Price] = field(default_factory=dict)
    drop_contaminated: bool = True  # queries marked as known to a model's training
    sha256: str = ""  # of the file; none: not checked


@dataclass(frozen=True)
class _Meta:
    name: str
    models: tuple[str, ...]
    prices: Mapping[str, Price]


@dataclass(frozen=True)
class _Record:
    id: str
    query: str
    domain: str
    split: str
    scores: list[float]  # m, NaN: not run
    costs: list[float]  # m


def read_outcomes(path: Path, choice: Choice | None = None) -> OutcomeSet:
    """The set in `path`, its tiers ordered by mean cost, the cheapest first.

    Raises:
        LearningError: the file or its meta is missing, altered or not of the form above (with the line), a tier is
            not in it, an id is there twice, or no query is left.
    """
    choice = choice or Choice()
    _check_hash(path, choice.sha256)
    meta = _read_meta(path)
    tiers = _chosen(meta, choice)
    prices = {**meta.prices, **choice.prices}
    records, contaminated, unit = [], 0, ""
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        document = _parse(line, where)
        if choice.drop_contaminated and document.get("contaminated") is True:
            contaminated += 1
            continue
        rule = _cost_rule(document, tiers, prices, where)
        if unit and rule != unit:
            raise LearningError(f"{where}: its cost is in {rule}, that of the lines before in {unit}; want one for all")
        unit = rule
        records.append(_record(document, meta, tiers, prices, where))
    notes = (f"{contaminated} queries marked as contaminated left out",) if contaminated else ()
    return _assemble(path, meta.name, tiers, records, unit, notes)


def _check_hash(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise LearningError(f"outcomes {path}: no such file; want NAME.jsonl or NAME.jsonl.gz beside NAME.meta.json")
    if wanted and (got := hashlib.sha256(path.read_bytes()).hexdigest()) != wanted:
        raise LearningError(f"outcomes {path}: sha256 is {got}, want {wanted}; fetch the file again")


def _read_meta(path: Path) -> _Meta:
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    meta = path.with_name(f"{name}.meta.json")
    try:
        document = json.loads(meta.read_text(encoding="utf-8"))
        models = document["models"]
        prices = {str(model): (float(p[0]), float(p[1])) for model, p in document.get("price_per_mtok", {}).items()}
    except OSError as error:
        raise LearningError(f"outcomes {path}: {meta.name} is missing beside it; it has to name `models`") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise LearningError(f"{meta}: not an object with `models` and numeric `price_per_mtok` ({error!r})") from error
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise LearningError(f"{meta}: models is {models!r}, want a list of names")
    return _Meta(name, tuple(models), prices)


def _chosen(meta: _Meta, choice: Choice) -> tuple[str, ...]:
    tiers = choice.tiers or meta.models
    if unknown := sorted(set(tiers) - set(meta.models)):
        raise LearningError(f"{meta.name}: no model {unknown[0]!r}, want some of {', '.join(meta.models)}")
    if not MIN_TIERS <= len(tiers) <= MAX_TIERS:
        raise LearningError(
            f"{meta.name}: {len(tiers)} models, a ladder has {MIN_TIERS} to {MAX_TIERS} tiers; name a subset in"
            " Choice(tiers=...)"
        )
    return tiers


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if line.strip():
                    yield number, line
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise LearningError(f"{path}, after line {number}: truncated or altered ({error}); fetch it again") from error


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise LearningError(f"{where}: not JSON ({error}), want one object a line") from error
    if not isinstance(document, dict):
        raise LearningError(f"{where}: got {type(document).__name__}, want an object")
    for name in ("id", "query"):
        if not isinstance(document.get(name), str) or not document[name].strip():
            raise LearningError(f"{where}: {name} is {document.get(name)!r}, want a text that is not empty")
    if document.get("split") not in _SPLITS:
        raise LearningError(f"{where}: split is {document['split']!r}, want train, val, test or none")
    return document


def _record(
    document: Mapping[str, Any], meta: _Meta, tiers: Sequence[str], prices: Mapping[str, Price], where: str
) -> _Record:
    places = [meta.models.index(tier) for tier in tiers]
    scores = _numbers(document, "scores", meta.models, where, 1.0)
    picked = [scores[place] for place in places]
    costs = [_cost(document, meta, tier, prices, where) for tier in tiers]
    for tier, score, cost in zip(tiers, picked, costs, strict=True):
        if not math.isnan(score) and math.isnan(cost):
            raise LearningError(f"{where}: {tier} has a score and no cost; want both, or null for both")
    return _Record(
        document["id"], document["query"], str(document.get("domain") or ""), _SPLITS[document.get("split")], picked,
        [math.nan if math.isnan(score) else cost for score, cost in zip(picked, costs, strict=True)],
    )  # fmt: skip


def _numbers(document: Mapping[str, Any], name: str, models: Sequence[str], where: str, most: float) -> list[float]:
    """The list `name` as floats, null as NaN."""
    values = document.get(name)
    if not isinstance(values, list) or len(values) != len(models):
        got = f"{len(values)} values" if isinstance(values, list) else repr(values)
        raise LearningError(f"{where}: {name} is {got}, want a list of {len(models)}, one a model of the meta file")
    for model, value in zip(models, values, strict=True):
        sound = value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most)
        if not sound:
            raise LearningError(f"{where}: {name} of {model} is {value!r}, want 0 to {most:g}, or null for not run")
    return [math.nan if value is None else float(value) for value in values]


def _cost_rule(document: Mapping[str, Any], tiers: Sequence[str], prices: Mapping[str, Price], where: str) -> str:
    """The unit of the line's costs, which is also where they come from."""
    if "cost_usd" in document:
        return "USD"
    if "cost" in document:
        return "cost"
    if all(tier in prices for tier in tiers):
        return "USD from tokens" if "out_tokens" in document else "USD a million tokens"
    if "out_tokens" in document:
        return "output tokens"
    raise LearningError(
        f"{where}: no cost, cost_usd or out_tokens, and no price of every tier; add one of them, or prices in Choice"
    )


def _cost(document: Mapping[str, Any], meta: _Meta, tier: str, prices: Mapping[str, Price], where: str) -> float:
    place = meta.models.index(tier)
    for name in ("cost_usd", "cost"):
        if name in document:
            return _numbers(document, name, meta.models, where, math.inf)[place]
    if "out_tokens" not in document:
        return sum(prices[tier]) / 2
    tokens = _numbers(document, "out_tokens", meta.models, where, math.inf)[place]
    if tier not in prices:
        return tokens
    paid_in, paid_out = prices[tier]
    return (tokens_of(document["query"]) * paid_in + tokens * paid_out) / 1e6


def _assemble(
    path: Path, name: str, tiers: Sequence[str], records: Sequence[_Record], unit: str, notes: tuple[str, ...]
) -> OutcomeSet:
    if not records:
        raise LearningError(f"outcomes {path}: no query in it, want at least one line")
    ids = [record.id for record in records]
    if len(set(ids)) < len(ids):
        twice = next(one for place, one in enumerate(ids) if one in ids[:place])
        raise LearningError(f"outcomes {path}: id {twice!r} is there twice, want each once")
    score = np.array([record.scores for record in records])  # (n, m)
    cost = np.array([record.costs for record in records])
    order = _cheapest_first(path, tiers, cost)
    return OutcomeSet(
        name, tuple(tiers[i] for i in order), tuple(ids), tuple(record.query for record in records),
        np.array([record.domain for record in records]), score[:, order], cost[:, order],
        np.array([record.split for record in records]), unit, notes,
    )  # fmt: skip


def _cheapest_first(path: Path, tiers: Sequence[str], cost: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
    if len(never := np.flatnonzero(np.isnan(cost).all(axis=0))):
        raise LearningError(f"outcomes {path}: {tiers[int(never[0])]} has no outcome at all; leave it out of the tiers")
    return [int(place) for place in np.argsort(np.nanmean(cost, axis=0), kind="stable")]
