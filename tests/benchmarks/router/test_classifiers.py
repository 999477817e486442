"""How often language, domain and query type are right: `pytest -m benchmark -s` on this file, with --data FOLDER.

Domain and query type on the repository's own sentences with wording and topics held out, and on public sets wherever
one of their labels means one of ours; the mapping below leaves out the others. Language on short questions of our own
and, English alone, on public ones. Nothing here was used for fitting but the repository's sentences.
"""

from __future__ import annotations

import gzip
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.minilm import MiniLMEncoder
from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.router.classifiers import classifiers_for
from ruvllm.router.fitting import fit_for
from ruvllm.router.language import language
from ruvllm.router.layout import DOMAINS, LANGUAGES, QUERY_TYPES
from tests.benchmarks.memory.report import Report, conditions

pytestmark = pytest.mark.benchmark

Labelled = list[tuple[str, str]]  # text, our name
Pick = Callable[[dict[str, str]], tuple[str, str]]
MOST = 300  # of each of our classes from one set

MMLU = {
    "mathematics": "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics"
    " high_school_statistics",
    "health": "anatomy clinical_knowledge college_medicine professional_medicine nutrition virology human_aging",
    "science": "astronomy college_biology college_chemistry college_physics conceptual_physics high_school_biology"
    " high_school_chemistry high_school_physics",
    "programming": "college_computer_science high_school_computer_science machine_learning",
    "economy": "econometrics high_school_macroeconomics high_school_microeconomics professional_accounting marketing",
    "government": "high_school_government_and_politics jurisprudence professional_law international_law",
    "history": "high_school_european_history high_school_us_history high_school_world_history prehistory",
    "geography": "high_school_geography",
    "military": "security_studies",
}
TRIVIA = {
    "geography": "geography",
    "history": "history",
    "arts": "movies music television literature",
    "science": "science-technology",
    "environment": "animals",
    "other": "sports hobbies",
}
CLINC = {
    "economy": "balance transfer credit_score interest_rate taxes exchange_rate pay_bill income bill_balance apr",
    "transport": "tire_pressure tire_change oil_change_how oil_change_when gas mpg jump_start traffic flight_status"
    " book_flight lost_luggage car_rental uber",
    "communications": "make_call text find_phone",
    "arts": "play_music what_song next_song update_playlist",
    "health": "calories nutrition_info vaccines",
    "environment": "weather",
    "mathematics": "calculator measurement_conversion",
    "other": "greeting goodbye thank_you tell_joke alarm shopping_list recipe restaurant_reservation yes no",
}
CLINC_TYPES = {
    "conversational": "greeting goodbye thank_you yes no maybe repeat are_you_a_bot what_is_your_name how_old_are_you"
    " who_made_you what_are_your_hobbies do_you_have_pets where_are_you_from meaning_of_life",
    "procedural": "oil_change_how tire_change jump_start improve_credit_score direct_deposit",
}


def rows(data: Path, name: str) -> Iterator[dict[str, str]]:
    with gzip.open(data / name, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def _turned(mapping: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, names in mapping.items() for theirs in names.split()}


def _sample(found: Labelled) -> Labelled:
    """At most MOST of each class, evenly from the whole file."""
    kept: Labelled = []
    for name in dict.fromkeys(label for _, label in found):
        of_it = [row for row in found if row[1] == name]
        kept += [of_it[at] for at in np.unique(np.linspace(0, len(of_it) - 1, min(MOST, len(of_it))).astype(int))]
    return kept


def _mapped(data: Path, name: str, text: str, label: str, mapping: Mapping[str, str]) -> Labelled:
    ours = _turned(mapping)
    return _sample([(row[text], ours[row[label]]) for row in rows(data, name) if row[label] in ours])


def _all_of(data: Path, name: str, label: str) -> Labelled:
    return _sample([(row["question"], label) for row in rows(data, name)])


def domain_sets(data: Path) -> dict[str, Labelled]:
    return {
        "mmlu": _mapped(data, "mmlu/dev.jsonl.gz", "question", "subject", MMLU),
        "opentriviaqa": _mapped(data, "opentriviaqa/all.jsonl.gz", "question", "category", TRIVIA),
        "clinc150": _mapped(data, "clinc150/data_small.jsonl.gz", "text", "intent", CLINC),
        "gsm8k": _all_of(data, "gsm8k/train.jsonl.gz", "mathematics"),
    }


def type_sets(data: Path) -> dict[str, Labelled]:
    return {
        "nq_open": _all_of(data, "nq_open/efficientqa_dev.jsonl.gz", "factual"),
        "gsm8k": _all_of(data, "gsm8k/train.jsonl.gz", "reasoning"),
        "strategyqa": _all_of(data, "strategyqa/train2061.jsonl.gz", "reasoning"),
        "clinc150": _mapped(data, "clinc150/data_small.jsonl.gz", "text", "intent", CLINC_TYPES),
    }


def _rows_of(name: str, found: Labelled, shares: np.ndarray, places: Sequence[str]) -> Iterator[tuple[str | int, ...]]:
    """One row for the whole set and one for each class of it: share right, among the first three, commonest class."""
    wanted = np.array([places.index(label) for _, label in found])
    best = np.argsort(-shares, axis=1)
    for label in ("all", *dict.fromkeys(label for _, label in found)):
        at = np.arange(len(found)) if label == "all" else np.flatnonzero(wanted == places.index(label))
        first = float((best[at, 0] == wanted[at]).mean())
        third = float((best[at, :3] == wanted[at, None]).any(axis=1).mean())
        base = float(np.bincount(wanted[at]).max() / len(at))
        yield name, label, len(at), round(first, 3), round(third, 3), round(base, 3)


COLUMNS = ("set", "class", "N", "right", "among the first three", "commonest class")


def test_held_out_sentences(out: Path, command: str) -> None:
    report = Report("classifiers-held-out", out, conditions(command=command))
    fitted = fit_for(EmbeddingAdapter(MiniLMEncoder()))
    table = [
        (name, got.n, round(got.right, 3), round(got.base, 3), round(got.log_loss, 3))
        for name, got in fitted.accuracy.items()
    ]
    note = (
        "Five folds by wording and topic: a tested sentence shares neither with those that its weights were fitted on."
    )
    report.table("Own sentences", ("place", "N", "right", "commonest class", "log loss"), table, note)
    print(f"\n{table}\n{fitted.sha256}")


def test_public_sets(data: Path, cache: EmbeddingCache, out: Path, command: str) -> None:
    report = Report("classifiers-public", out, conditions(command=command))
    classifiers = classifiers_for(cache.adapter.id)
    assert classifiers is not None
    for title, sets, places, part in (
        ("Domain", domain_sets(data), DOMAINS, classifiers.domain),
        ("Query type", type_sets(data), QUERY_TYPES, classifiers.query_type),
    ):
        found = [
            row
            for name, labelled in sets.items()
            for row in _rows_of(
                name, labelled, part.shares(cache.embed([t for t, _ in labelled]).astype(float)), places
            )
        ]
        report.table(f"{title} on public sets", COLUMNS, found, "Classes without an honest counterpart are left out.")
        print("\n".join(map(str, [title, *found])))


def test_languages(data: Path, out: Path, command: str) -> None:
    report = Report("languages", out, conditions(command=command))
    own = tomllib.loads((Path(__file__).parent / "languages.toml").read_text(encoding="utf-8"))
    sets = {f"own questions, {name}": (name, own[name].strip().splitlines()) for name in LANGUAGES}
    for name, file in (("nq_open", "nq_open/efficientqa_dev.jsonl.gz"), ("gsm8k", "gsm8k/train.jsonl.gz")):
        sets[f"{name}, english"] = ("english", [text for text, _ in _all_of(data, file, "")])
    found = [
        (name, len(texts), round(float(np.mean([language(text)[LANGUAGES.index(wanted)] for text in texts])), 3))
        for name, (wanted, texts) in sets.items()
    ]
    report.table("Language", ("set", "N", "right"), found)
    print("\n".join(map(str, found)))
