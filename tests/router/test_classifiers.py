"""Classifiers of domain and query type: shares by the formula, files that are refused, sentences they never saw."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.embedding.minilm import MiniLMEncoder
from ruvllm.errors import ArtifactError, InputError
from ruvllm.router import classifiers as module
from ruvllm.router import fitting
from ruvllm.router.classifiers import Classifiers, Linear, classifiers_for, parse
from ruvllm.router.examples import examples, fold_of, read_phrases
from ruvllm.router.features import FeatureInput, extract, extract_many
from ruvllm.router.fitting import FOLDS, Accuracy, Fitted, _split, fit_for, fit_linear, table
from ruvllm.router.layout import DOMAINS, LAYOUT, QUERY_TYPES
from ruvllm.router.shipped import CLASSIFIERS, Shipped, fingerprint

ENCODER = "all-minilm-l6-v2-int8"


@pytest.fixture(scope="module")
def adapter() -> EmbeddingAdapter:
    return EmbeddingAdapter(MiniLMEncoder())


def random_classifiers(dimension: int = 8) -> Classifiers:
    rng = np.random.default_rng(0)
    return Classifiers(
        Linear(rng.normal(size=(16, dimension)), rng.normal(size=16)),
        Linear(rng.normal(size=(6, dimension)), rng.normal(size=6)),
    )


def test_shares_are_the_softmax_of_the_logits() -> None:
    linear = random_classifiers().domain
    x = np.random.default_rng(1).normal(size=(5, 8)) * 300  # no overflow
    for row, shares in zip(x, linear.shares(x), strict=True):
        logits = [float(w @ row + b) for w, b in zip(linear.weight, linear.bias, strict=True)]
        wanted = [1 / sum(np.exp(min(other - one, 700)) for other in logits) for one in logits]
        np.testing.assert_allclose(shares, wanted, atol=1e-9)


def test_a_file_holds_what_was_written() -> None:
    content = random_classifiers().to_bytes()
    again = parse("x", content)
    assert again.dimension == 8
    assert again.to_bytes() == content


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"domain.weight": np.ones((16, 8), dtype=np.float32)},
        {"domain.weight": np.ones((5, 8)), "domain.bias": np.ones(5), "query_type.weight": np.ones((6, 8)),
         "query_type.bias": np.ones(6)},
        {"domain.weight": np.full((16, 8), np.nan), "domain.bias": np.ones(16), "query_type.weight": np.ones((6, 8)),
         "query_type.bias": np.ones(6)},
    ],
)  # fmt: skip
def test_other_arrays_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ArtifactError, match=r"classifiers mine: arrays .*want finite"):
        parse("mine", save(arrays))


def test_no_safetensors_is_refused() -> None:
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        parse("mine", b"\x00" * 40)


def test_an_altered_or_missing_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random_classifiers().to_bytes()
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    table = {"mine": Shipped("mine.safetensors", hashlib.sha256(content).hexdigest())}
    monkeypatch.setattr(module, "CLASSIFIERS", table)
    classifiers_for.cache_clear()
    with pytest.raises(ArtifactError, match=r"mine.safetensors: No such file"):
        classifiers_for("mine")
    (tmp_path / "mine.safetensors").write_bytes(content[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"mine.safetensors: sha256 is .*, want .*; install"):
        classifiers_for("mine")
    (tmp_path / "mine.safetensors").write_bytes(content)
    assert classifiers_for("mine") is not None
    classifiers_for.cache_clear()


def test_another_encoder_has_none_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    classifiers_for.cache_clear()
    vector = np.ones(8, dtype=np.float32)
    with caplog.at_level(logging.WARNING):
        features = extract_many([FeatureInput("Why?", 1, vector, encoder_id="somebody's")] * 3)
    assert not features[:, LAYOUT["domain_encoding"]].any()
    assert not features[:, LAYOUT["query_type"]].any()
    assert [record.message for record in caplog.records if "somebody's" in record.message] == [
        "no classifiers for encoder somebody's: domain and query type of questions are unknown"
    ]


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match=f"got 8 values, encoder {ENCODER} gives 384"):
        extract(FeatureInput("Why?", 1, np.ones(8, dtype=np.float32), encoder_id=ENCODER))


def test_the_layout_names_the_classifiers_it_was_made_with() -> None:
    assert CLASSIFIERS[ENCODER].sha256[:12] in fingerprint()
    for name in ("domain_encoding", "query_type"):
        assert fingerprint() in LAYOUT.by_name[name].meaning


NOBODYS = [
    ("Which sea does the river Ebro reach?", "geography", "factual"),
    ("What is the highest peak of the Andes?", "geography", "factual"),
    ("How many babies are born in Kenya per 1,000 inhabitants?", "people", "factual"),
    ("Why do glaciers melt faster when the air is full of soot?", "environment", "reasoning"),
    ("Which house of parliament can dismiss the prime minister of Italy?", "government", "factual"),
    ("Write a sonnet about an inflation that would not stop", "economy", "creative"),
    ("Is wind power cheaper than nuclear power?", "energy", "comparison"),
    ("How many web users does Samoa have?", "communications", "factual"),
    ("How many heliports does Latvia have?", "transport", "factual"),
    ("Explain to me how to renew the licence of my car, step by step", "transport", "procedural"),
    ("Is an army of volunteers better than one of conscripts?", "military", "comparison"),
    ("Why did the Weimar republic collapse?", "history", "reasoning"),
    ("Compare a proton with a neutron", "science", "comparison"),
    ("A baker fills 14 trays with 6 rolls each and sells 50. How many rolls are left?", "mathematics", "reasoning"),
    ("How do I treat a sprained ankle?", "health", "procedural"),
    ("How do I sort a dictionary by its values in Python?", "programming", "procedural"),
    ("Who wrote The Trial and The Castle?", "arts", "factual"),
    ("thanks a lot, you are great", "other", "conversational"),
    ("Make up a lullaby for a tired robot", None, "creative"),
    ("ok, but what did you mean by that?", None, "conversational"),
]


def test_most_questions_of_nobodys_template_are_told_apart(adapter: EmbeddingAdapter) -> None:
    """Single ones may fail, as held-out ones do; weights of another encoder would leave one in sixteen."""
    given = [FeatureInput(text, 9, adapter.embed_one(text), encoder_id=adapter.id) for text, _, _ in NOBODYS]
    features = extract_many(given)
    kinds = [QUERY_TYPES[at] for at in features[:, LAYOUT["query_type"]].argmax(axis=1)]
    domains = [DOMAINS[at] for at in features[:, LAYOUT["domain_encoding"]].argmax(axis=1)]
    right = [got == wanted for got, (_, wanted, _) in zip(domains, NOBODYS, strict=True) if wanted]
    assert sum(right) >= 0.7 * len(right), [
        (d, text) for d, (text, w, _) in zip(domains, NOBODYS, strict=True) if d != w
    ]
    wrong = [(kind, text) for kind, (text, _, wanted) in zip(kinds, NOBODYS, strict=True) if kind != wanted]
    assert len(wrong) <= 0.3 * len(NOBODYS), wrong


def test_every_class_has_its_sentences_and_the_same_seed_the_same() -> None:
    found = examples(3)
    assert [e.text for e in found] == [e.text for e in examples(3)] != [e.text for e in examples(4)]
    assert len({e.text for e in found}) == len(found) > 2500
    assert {(e.domain, e.query_type) for e in found} == {(d, k) for d in DOMAINS for k in QUERY_TYPES}
    assert not any("{" in e.text for e in found)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "phrases.toml"
    path.write_text("[slots]\n[types]\n[domains]\n")
    with pytest.raises(ArtifactError, match="factual"):
        read_phrases(path)
    with pytest.raises(ArtifactError, match="No such file"):
        read_phrases(tmp_path / "none.toml")


def test_held_out_sentences_share_neither_wording_nor_topic_with_the_others() -> None:
    rows = examples()
    for fold in range(FOLDS):
        train, test = _split(rows, fold)
        assert len(test) > 100
        parts = [{part for at in side for part in (rows[at].wording, *rows[at].topics)} for side in (train, test)]
        assert not parts[0] & parts[1]
        assert all(fold_of(part, FOLDS) == fold for part in parts[1])


def test_a_class_without_examples_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"no example of classes \[2\]"):
        fit_linear(np.eye(3), np.array([0, 1, 3]), 4)


def test_fitting_is_a_file_its_hash_and_an_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the sentences and an encoder of words without meaning: quick, and still better than chance."""
    monkeypatch.setattr(fitting, "examples", lambda seed: examples(seed)[::3])
    fitted = fit_for(EmbeddingAdapter(HashingEncoder(32)), strength=0.1)
    path = fitted.write(tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == fitted.sha256
    assert parse("x", path.read_bytes()).dimension == 32
    assert set(fitted.accuracy) == {"domain", "query_type"}
    assert all(1 / 16 < got.right < 1 and got.n > 200 for got in fitted.accuracy.values())


def test_the_table_shows_the_base_rate() -> None:
    lines = table(Fitted("e", b"", {"domain": Accuracy(0.75, 0.25, 1200, 0.8)}))
    assert lines[-1] == "| domain | 16 | 0.750 | 0.250 | 0.800 | 1,200 |"
