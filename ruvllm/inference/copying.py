"""Answers that are copied: what may be said next is the next token of a run of whole words in the given texts.

Knows nothing of llama.cpp, of processes or of what a prompt looks like. An extractive reader's answer is a span of the
passage (Rajpurkar et al. 2016, SQuAD); here a model that generates is held to one by masking its logits. The texts are
a graph of tokens: each has one that follows it, and the model walks along it from any word's beginning. It may leave
where a word ends, and does when ending is likelier than the best way on: the probabilities of the tokens that end an
answer (the model's own end, a line break, a mark that closes a clause) are one sum against each token that goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

NOWHERE = -1  # what follows the last token of a text
_CLOSING = b".,;!?"  # ends a clause, where it does not go on in the text


class Vocabulary(Protocol):
    """A model's tokens; `ruvllm.inference.engine.Engine` has one."""

    def tokenise(self, text: str, special: bool) -> list[int]: ...
    def is_end(self, token: int) -> bool: ...
    def piece(self, token: int) -> bytes: ...


@dataclass(frozen=True)
class Ends:
    """How an answer ends: `token` is what the model's own end is, `closing` (c,) all tokens that say so."""

    token: int
    closing: Ids


@dataclass(frozen=True)
class Spans:
    """Texts as one graph, by place: the token there, the place that follows, whether a word ends with it."""

    tokens: tuple[int, ...]
    after: tuple[int, ...]  # NOWHERE: the text ends
    whole: tuple[bool, ...]
    starts: tuple[int, ...]  # places where an answer may begin


def ends_of(vocabulary: Vocabulary, size: int) -> Ends:
    """Looks at all `size` tokens; to be kept with the model.

    Raises:
        InputError: the model has no token that ends an answer.
    """
    own = [token for token in range(size) if vocabulary.is_end(token)]
    if not own:
        raise InputError("copying: this model has no token that ends an answer; ask without copying")
    closing = {*own, *(token for token in range(size) if _closes(vocabulary.piece(token)))}
    return Ends(own[0], np.array(sorted(closing), dtype=np.int64))


def _closes(piece: bytes) -> bool:
    bare = piece.lstrip(b" ")
    return bare[:1] == b"\n" or (bare[:1] != b"" and bare[:1] in _CLOSING)


def spans_of(texts: Iterable[str], vocabulary: Vocabulary) -> Spans:
    """The graph of `texts`, none of which goes on in another.

    A word behind a quotation mark, a bracket or nothing has a token without a space, but a model that begins an answer
    says one with a space: so such a word can also be entered by its spelling behind a space.

    Raises:
        InputError: there is no word to copy.
    """
    made = _Making()
    for text in texts:
        _add(made, text, vocabulary)
    if not made.starts:
        raise InputError("copying: got no text to copy from, want passages in the context; ask without copying")
    return Spans(tuple(made.tokens), tuple(made.after), tuple(made.whole), tuple(made.starts))


@dataclass
class _Making:
    tokens: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def run(self, tokens: Sequence[int], whole: Sequence[bool], then: int = NOWHERE) -> int:
        """Where the run begins; behind its last token stands the place `then`."""
        first = len(self.tokens)
        self.tokens += tokens
        self.whole += whole
        self.after += [*range(first + 1, first + len(tokens)), then]
        return first


def _add(made: _Making, text: str, vocabulary: Vocabulary) -> None:
    tokens = vocabulary.tokenise(text, special=False)
    if not tokens:
        return
    pieces = [vocabulary.piece(token) for token in tokens]
    cuts = [0, *(i for i in range(1, len(pieces)) if _cut(pieces[i - 1], pieces[i])), len(pieces)]
    whole = [not _of_word(piece[:1]) for piece in pieces[1:]] + [True]  # nothing is glued to what was said
    first = made.run(tokens, whole)
    for here, following in pairwise(cuts):
        if not _begins(pieces, here):
            continue
        made.starts.append(first + here)
        if not pieces[here][:1].isspace():
            then = first + following if following < len(tokens) else NOWHERE
            _behind_a_space(made, b"".join(pieces[here:following]), whole[following - 1], then, vocabulary)


def _behind_a_space(made: _Making, word: bytes, whole: bool, then: int, vocabulary: Vocabulary) -> None:
    tokens = vocabulary.tokenise(f" {word.decode(errors='ignore')}", special=False)
    if tokens:
        made.starts.append(made.run(tokens, [False] * (len(tokens) - 1) + [whole], then))


def _cut(before: bytes, piece: bytes) -> bool:
    """Whether a word ends between two tokens."""
    return not (_of_word(before[-1:]) and _of_word(piece[:1]))


def _of_word(byte: bytes) -> bool:
    """Letters and digits, and every byte of a character beyond ASCII: it may be one of a letter."""
    return byte.isalnum() or byte >= b"\x80"


def _begins(pieces: Sequence[bytes], place: int) -> bool:
    """A word, or a sign that stands right before one and behind none: $ 5, .gh, -3, but not the .1 of 1.1."""
    bare = pieces[place].lstrip()
    if _of_word(bare[:1]):
        return True
    if place and _of_word(pieces[place - 1][-1:]) and not pieces[place][:1].isspace():
        return False
    following = bare[1:2] if len(bare) > 1 else pieces[place + 1][:1] if place + 1 < len(pieces) else b""
    return bare != b"" and _of_word(following)


class Limit:
    """One answer's way along `spans`. Ask it for the logits, then tell it what was said."""

    def __init__(self, spans: Spans, ends: Ends) -> None:
        self._spans, self._ends = spans, ends
        self._next: tuple[int, ...] = spans.starts  # places that may come next
        self._may_end = False  # an empty answer is none

    def __call__(self, logits: Logits) -> Logits:
        """The same (V,) logits with all that may not come next at minus infinity; the end has the sum of all ends."""
        going_on = np.array(sorted({self._spans.tokens[place] for place in self._next}), dtype=np.int64)
        limited = np.full_like(logits, -np.inf)
        limited[going_on] = logits[going_on]
        if self._may_end or not len(going_on):
            closing = np.setdiff1d(self._ends.closing, going_on, assume_unique=True)
            limited[self._ends.token] = np.logaddexp.reduce(logits[closing])
        return limited

    def said(self, token: int) -> None:
        """`token` was picked and did not end the answer."""
        here = [place for place in self._next if self._spans.tokens[place] == token]
        self._may_end = any(self._spans.whole[place] for place in here)
        self._next = tuple(sorted(set(self._following(here))))

    def _following(self, here: Iterable[int]) -> Iterator[int]:
        return (self._spans.after[place] for place in here if self._spans.after[place] != NOWHERE)
