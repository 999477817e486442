"""Search by words: BM25 checked against its formula written out, and against bm25s's own scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ruvllm.errors import ArtifactError
from ruvllm.memory.retrieval.words import Counted, WordIndex, tokens

TEXTS = (
    "The capital of Ghana is Accra. Accra is a city.",
    "Ghana exports gold, cocoa and timber",
    "Population of the cities of Togo",
    "",
    "日本の首都は東京",
)


@pytest.fixture
def index(tmp_path: Path) -> WordIndex:
    WordIndex.build(TEXTS, tmp_path / "words")
    return WordIndex.open(tmp_path / "words")


def _formula(query: str, text: str, corpus: tuple[str, ...], k1: float = 1.5, b: float = 0.75) -> float:
    """Lucene's BM25 (Kamphuis et al. 2020, table 1), word by word."""
    texts = [list(tokens(each)) for each in corpus]
    own, average = list(tokens(text)), sum(map(len, texts)) / len(texts)
    total = 0.0
    for word in tokens(query):
        holding = sum(word in each for each in texts)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        total += idf * own.count(word) / (own.count(word) + k1 * (1 - b + b * len(own) / average))
    return total


@pytest.mark.parametrize("query", ["What is the capital of Ghana?", "city city", "東京", "zebra", "the of", ""])
def test_scores_are_those_of_the_formula(index: WordIndex, query: str) -> None:
    assert_allclose(index.scores(query), [_formula(query, text, TEXTS) for text in TEXTS], rtol=1e-5, atol=1e-7)
    assert index.scores(query).dtype == np.float32


def test_later_texts_score_as_if_they_were_in_the_index(index: WordIndex) -> None:
    query = "capital city of Ghana, and its gold"
    assert_allclose(index.scores_of(query, TEXTS), index.scores(query), rtol=1e-5)
    assert_allclose(index.scores_of(query, [Counted.of(t) for t in TEXTS]), index.scores(query), rtol=1e-5)
    assert index.scores_of(query, []).shape == (0,)
    assert (
        index.scores_of("zebra", ["a zebra"])[0] > index.scores_of("ghana", ["a ghana"])[0] > 0
    )  # the rarer weighs more


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=8), st.text(max_size=40))
def test_any_text_can_be_indexed_and_asked(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], query: str
) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    query = query.encode("utf-8", "replace").decode()
    folder = tmp_path_factory.mktemp("words")
    WordIndex.build(iter(texts), folder)
    opened = WordIndex.open(folder)
    scores = opened.scores(query)
    assert scores.shape == (len(texts),)
    assert_allclose(opened.scores_of(query, texts), scores, rtol=1e-4, atol=1e-6)
    shares = [bool(set(tokens(query)) & set(tokens(text))) for text in texts]
    assert list(scores > 0) == shares


def test_scores_are_those_of_bm25s(tmp_path: Path) -> None:
    from bm25s import BM25

    made = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in made.zipf(1.4, 30) % 500) for _ in range(200)]
    WordIndex.build(texts, tmp_path)
    theirs = BM25(k1=1.5, b=0.75, method="lucene")
    theirs.index([list(tokens(text)) for text in texts], show_progress=False)
    opened = WordIndex.open(tmp_path)
    for query in texts[:20]:
        assert_allclose(opened.scores(query), theirs.get_scores(list(tokens(query))), rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Cities, countries' LADIES and Glasses!", ["city", "country", "lady", "glasse"]),
        ("Ghana's bus has no gas in 1,200 m²", ["ghana", "bus", "gas", "1", "200", "m²"]),
        ("ÉCOLE École Straße", ["école", "école", "strasse"]),
        ("snake_case 東京tower", ["snake", "case", "東", "京", "tower"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert list(tokens(text)) == words


def test_an_altered_index_is_refused(index: WordIndex, tmp_path: Path) -> None:
    folder = tmp_path / "words"
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps({**about, "layout": 99}))
    with pytest.raises(ArtifactError, match="layout is 99, want 1; delete the folder"):
        WordIndex.open(folder)
    (folder / "about.json").write_text(json.dumps({**about, "words": 7}))
    with pytest.raises(ArtifactError, match="want 7"):
        WordIndex.open(folder)
    (folder / "about.json").write_text(json.dumps(about))
    np.save(folder / "data.npy", np.array([{"no": "pickle"}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="Python objects"):
        WordIndex.open(folder)
    whole = (folder / "texts.npy").read_bytes()
    (folder / "texts.npy").write_bytes(whole[:-4])
    with pytest.raises(ArtifactError):
        WordIndex.open(folder)
    (folder / "texts.npy").unlink()
    with pytest.raises(ArtifactError):
        WordIndex.open(folder)
