"""Search by words: BM25 over texts, built by bm25s, saved as plain arrays and mapped. Knows nothing of nodes.

A static index: `n` texts in the order in which they came. What came later is scored beside it with the index's own
word weights (`scores_of`). Files hold numbers and UTF-8 only; whoever keeps the folder keeps their hashes.

    data.npy (p,) float32    score of a word in a text, by word
    texts.npy (p,) int32     that text's number
    starts.npy (v + 1,) int64  where each word's part of both begins
    words.npy (b,) uint8, ends.npy (v + 1,) int64, numbers.npy (v,) int64  the vocabulary sorted by its UTF-8, and the
                             number that each word has in `starts`
"""

from __future__ import annotations

import bisect
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import ArtifactError

Array = NDArray[Any]
Scores = NDArray[np.float32]

LAYOUT = 1  # of the files and of how words are told apart: an index of another number is built anew
K1, B = 1.5, 0.75  # Robertson & Zaragoza 2009, section 3.5
_ARRAYS: dict[str, type[np.generic]] = {"data": np.float32, "texts": np.int32, "starts": np.int64, "words": np.uint8,
           "ends": np.int64, "numbers": np.int64}  # fmt: skip

# A Chinese or Japanese character is a word by itself: those scripts write no space between words.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿]|[^\W_぀-ヿ㐀-䶿一-鿿]+")

# Lucene's English stop words, and the words that make a sentence a question: they are in every question and tell no
# passage from another (measured: docs/retrieval.md).
STOP_WORDS = frozenset(
    (  # noqa: SIM905
        "a an and are as at be but by for if in into is it no not of on or s such t that the their then there these"
        " they this to was will with"
        " about can could did do does from had has have he her his how i its may our shall should she we were what"
        " when where which who whom whose why would you your"
    ).split()
)


def tokens(text: str) -> Iterator[str]:
    """The words of `text` that BM25 counts: case-folded, without stop words, plurals as singulars."""
    return (_singular(word) for word in _WORD.findall(text.casefold()) if word not in STOP_WORDS)


def _singular(word: str) -> str:
    """The S stemmer (Harman 1991, "How effective is suffixing?", table 1): the first ending that fits decides."""
    if len(word) < 4 or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word if word.endswith(("eies", "aies")) else f"{word[:-3]}y"
    if word.endswith("es"):
        return word if word.endswith(("aes", "ees", "oes")) else word[:-1]
    return word if word.endswith(("us", "ss")) else word[:-1]


@dataclass(frozen=True)
class Counted:
    """A text as BM25 sees it: how often each word is there, how many words there are."""

    counts: Mapping[str, int]
    length: int

    @classmethod
    def of(cls, text: str) -> Counted:
        counts = Counter(tokens(text))
        return cls(counts, counts.total())


class WordIndex:
    """BM25 of a query against texts. Safe among threads: it is never changed."""

    def __init__(self, arrays: Mapping[str, Array], n: int, average: float) -> None:
        """`n` texts of `average` words; use `open`."""
        self.n, self.average = n, average
        self._data, self._texts, self._starts = arrays["data"], arrays["texts"], arrays["starts"]
        self._vocabulary = _Vocabulary(arrays["words"], arrays["ends"], arrays["numbers"])
        self.nbytes = sum(array.nbytes for array in arrays.values())  # mapped, so resident only where it is read

    @staticmethod
    def build(texts: Iterable[str], folder: Path) -> None:
        """Index `texts` into `folder`, which is made; files of an earlier index there are replaced."""
        numbers: dict[str, int] = {}
        # the numbers are the vocabulary's own objects: a word of a text costs one pointer
        ids = [[numbers.setdefault(word, len(numbers)) for word in tokens(text)] for text in texts]
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in {**_postings(ids, numbers), **_packed(numbers)}.items():
            np.save(folder / f"{name}.npy", array.astype(_ARRAYS[name]), allow_pickle=False)
        average = sum(map(len, ids)) / len(ids) if ids else 0.0
        about = {"layout": LAYOUT, "texts": len(ids), "words": len(numbers), "average": average}
        (folder / "about.json").write_text(json.dumps(about))

    @classmethod
    def open(cls, folder: Path) -> WordIndex:
        """Map the index of `folder`.

        Raises:
            ArtifactError: a file is missing, truncated or of another layout.
        """
        try:
            about = json.loads((folder / "about.json").read_text())
            if about["layout"] != LAYOUT:
                raise ValueError(f"layout is {about['layout']}, want {LAYOUT}")
            arrays = {name: _mapped(folder / f"{name}.npy", kind) for name, kind in _ARRAYS.items()}
            _check(arrays, int(about["words"]))
            return cls(arrays, int(about["texts"]), float(about["average"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"word index {folder}: {error}; delete the folder, and it is built anew") from error

    def scores(self, query: str) -> Scores:
        """(n,) BM25 of each text, 0 where it shares no word with `query`."""
        scores = np.zeros(self.n, dtype=np.float32)
        for word in tokens(query):  # a word asked twice counts twice
            if (number := self._vocabulary.find(word)) is not None:
                part = slice(self._starts[number], self._starts[number + 1])
                scores[self._texts[part]] += self._data[part]  # a text is there once a word
        return scores

    def scores_of(self, query: str, texts: Sequence[str | Counted]) -> Scores:
        """(m,) BM25 of texts that are not in the index, with its word weights and average length.

        A word that the index does not hold weighs what the rarest one would. A text that is asked often is best
        counted once, with `Counted.of`.
        """
        weights = [(word, self._weight(word)) for word in tokens(query)]
        counted = [text if isinstance(text, Counted) else Counted.of(text) for text in texts]
        return np.array([self._score(weights, each) for each in counted], dtype=np.float32)

    def _weight(self, word: str) -> float:
        """Lucene's inverse document frequency, as bm25s has it (Kamphuis et al. 2020, table 1)."""
        number = self._vocabulary.find(word)
        holding = 0 if number is None else int(self._starts[number + 1] - self._starts[number])
        return float(np.log(1 + (self.n - holding + 0.5) / (holding + 0.5)))

    def _score(self, weights: Sequence[tuple[str, float]], text: Counted) -> float:
        relative = text.length / self.average if self.average else 1.0
        damp = K1 * (1 - B + B * relative)
        found = ((weight, text.counts[word]) for word, weight in weights if word in text.counts)
        return sum(weight * count / (count + damp) for weight, count in found)


class _Vocabulary:
    """Sorted words in one mapped array: found by halving, so opening it reads nothing."""

    def __init__(self, words: Array, ends: Array, numbers: Array) -> None:
        self._words, self._ends, self._numbers = words, ends, numbers

    def find(self, word: str) -> int | None:
        """The number of `word`, or None."""
        wanted, size = word.encode(), len(self._numbers)
        at = bisect.bisect_left(range(size), wanted, key=self._at)
        return int(self._numbers[at]) if at < size and self._at(at) == wanted else None

    def _at(self, number: int) -> bytes:
        return self._words[self._ends[number] : self._ends[number + 1]].tobytes()


def _postings(ids: list[list[int]], numbers: Mapping[str, int]) -> dict[str, Array]:
    """Scores, text numbers and starts, by the number of the word."""
    if not numbers:
        return {"data": np.empty(0), "texts": np.empty(0), "starts": np.zeros(1)}
    from bm25s import BM25  # type: ignore[import-untyped]  # imports scipy: only where an index is built

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    index = BM25(k1=K1, b=B, method="lucene")
    index.index((ids, dict(numbers)), create_empty_token=False, show_progress=False)
    return {"data": index.scores["data"], "texts": index.scores["indices"], "starts": index.scores["indptr"]}


def _packed(numbers: Mapping[str, int]) -> dict[str, Array]:
    encoded = sorted((word.encode(), number) for word, number in numbers.items())
    return {
        "words": np.frombuffer(b"".join(word for word, _ in encoded), dtype=np.uint8),
        "ends": np.cumsum([0, *(len(word) for word, _ in encoded)]),
        "numbers": np.array([number for _, number in encoded], dtype=np.int64),
    }


def _mapped(path: Path, kind: type[np.generic]) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != kind or array.ndim != 1:
        raise ValueError(f"{path.name} holds {array.dtype} of {array.ndim} dimensions, want {np.dtype(kind)} of 1")
    return np.asarray(array)  # still mapped; a slice of numpy's own class for it costs ten times as much


def _check(arrays: Mapping[str, Array], words: int) -> None:
    """Lengths that must agree; an altered value inside is for the folder's hashes to find."""
    starts, ends = arrays["starts"], arrays["ends"]
    if (len(starts), len(ends), len(arrays["numbers"])) != (words + 1, words + 1, words):
        raise ValueError(f"{len(starts) - 1} words with texts and {len(ends) - 1} written, want {words}")
    if starts[-1] != len(arrays["data"]) or starts[-1] != len(arrays["texts"]) or ends[-1] != len(arrays["words"]):
        raise ValueError("the arrays' lengths do not agree")
