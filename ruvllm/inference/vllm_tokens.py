"""Text to token ids by a vLLM server's own tokeniser; special tokens act in trusted text only. Knows no sampling.

vLLM's /tokenize reads a literal `<|im_end|>` as the special token wherever it stands, and has no switch against it. So
untrusted text is tokenised, and where a special token came out the text is cut behind that token's first character and
the parts are tokenised apart: the characters stay, the token cannot come about. What is special is said by
/tokenizer_info where the server offers it (`ruvllm vllm up` asks for it); whatever else reads as one whole tag, such as
`<|…|>`, `<s>` or `[INST]`, is taken for special too, which costs a plain token nothing but another cut.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ruvllm.errors import BackendError, InputError
from ruvllm.inference.types import Prompt, Segment

MAX_KEPT = 1_000_000  # token ids in the cache, about 32 MB
MAX_CUTS = 64  # in one text; beyond it special tokens are broken by a blank, so that a text cannot cost 1,000 requests
_TAG = re.compile(r"[<\[＜｜].+[>\]＞｜]", re.DOTALL)

Ids = tuple[int, ...]


class Asked(Protocol):
    """What is needed of a server."""

    @property
    def url(self) -> str: ...
    def get(self, path: str, deadline: float) -> Any: ...
    def post(self, path: str, body: dict[str, object], deadline: float) -> Any: ...


class Kept:
    """Token ids by (text, trusted), the most recently used first to stay; safe for threads."""

    def __init__(self, budget: int = MAX_KEPT) -> None:
        self._ids: OrderedDict[tuple[str, bool], Ids] = OrderedDict()
        self._size, self._budget, self._guard = 0, budget, threading.Lock()

    def get(self, key: tuple[str, bool]) -> Ids | None:
        with self._guard:
            if key in self._ids:
                self._ids.move_to_end(key)
            return self._ids.get(key)

    def put(self, key: tuple[str, bool], ids: Ids) -> None:
        with self._guard:
            if key not in self._ids:
                self._ids[key] = ids
                self._size += len(ids) + 1
            while self._size > self._budget:
                self._size -= len(self._ids.popitem(last=False)[1]) + 1


class Tokeniser:
    """The tokeniser of the model `name`; every replica of a tier has the same, so one cache serves them all."""

    def __init__(self, name: str, kept: Kept | None = None) -> None:
        self._name, self._kept = name, kept or Kept()
        self._special: frozenset[str] | None = None
        self._begin: Ids | None = None

    def prompt(self, server: Asked, prompt: Prompt, deadline: float) -> tuple[Ids, Ids, Ids]:
        """(static, history and context, question): each segment apart, so that no token depends on what follows."""
        static = (*self.begin(server, deadline), *self._segments(server, prompt.static, deadline))
        body = self._segments(server, (*prompt.history, *prompt.context), deadline)
        return static, body, self._segments(server, prompt.question, deadline)

    def _segments(self, server: Asked, segments: Sequence[Segment], deadline: float) -> Ids:
        return tuple(i for each in segments for i in self.ids(server, each.text, each.trusted, deadline))

    def ids(self, server: Asked, text: str, trusted: bool, deadline: float) -> Ids:
        """Token ids of `text`, without those that the model wants at the very start."""
        if not text:
            return ()
        known = self._kept.get((text, trusted))
        if known is None:
            known = self._ask(server, text, deadline)[0] if trusted else self._plain(server, text, deadline)
            self._kept.put((text, trusted), known)
        return known

    def begin(self, server: Asked, deadline: float) -> Ids:
        """What the model wants at the very start: what /tokenize puts before a text when it is told to."""
        if self._begin is None:
            bare = self._ask(server, "a", deadline)[0]
            whole = self._ask(server, "a", deadline, special=True)[0]
            place = _index(whole, bare)
            if place is None:
                raise BackendError(f"{server.url}: tokenised 'a' to {bare} and, with special tokens, to {whole}")
            self._begin = whole[:place]
        return self._begin

    def _plain(self, server: Asked, text: str, deadline: float) -> Ids:
        """No special token, whatever the text says."""
        known = self._special_tokens(server, deadline)
        parts = _cut(text, known)
        if len(parts) > MAX_CUTS:
            return self._part(server, " ".join(parts), deadline, known)
        return tuple(i for part in parts for i in self._part(server, part, deadline, known))

    def _part(self, server: Asked, text: str, deadline: float, known: frozenset[str]) -> Ids:
        ids, words = self._ask(server, text, deadline)
        special = {word for word in words if word in known or _TAG.fullmatch(word)}
        if not special:
            return ids
        parts = _cut(text, special)
        if len(parts) == 1:
            raise InputError(
                f"prompt: the tokeniser of model {self._name} makes the special token {min(special)!r} of text that "
                "does not hold it; want text without what looks like it"
            )
        if len(parts) > MAX_CUTS:
            return self._part(server, " ".join(parts), deadline, known)
        return tuple(i for part in parts for i in self._part(server, part, deadline, known))

    def _special_tokens(self, server: Asked, deadline: float) -> frozenset[str]:
        if self._special is None:
            try:
                self._special = frozenset(_tokens_in(server.get("/tokenizer_info", deadline)))
            except BackendError:  # not offered: then tags alone are known
                self._special = frozenset()
        return self._special

    def _ask(self, server: Asked, text: str, deadline: float, special: bool = False) -> tuple[Ids, list[str]]:
        body: dict[str, object] = {
            "model": self._name,
            "prompt": text,
            "add_special_tokens": special,
            "return_token_strs": True,
        }
        answer = server.post("/tokenize", body, deadline)
        try:
            ids, words = tuple(answer["tokens"]), list(answer["token_strs"])
        except (KeyError, TypeError) as error:
            raise BackendError(f"{server.url}: /tokenize gave no tokens with their strings: {error!r}") from error
        if not all(type(i) is int for i in ids) or len(words) != len(ids):
            raise BackendError(f"{server.url}: /tokenize gave {len(ids)} tokens and {len(words)} strings, want ids")
        return ids, [str(word) for word in words]


def _cut(text: str, special: frozenset[str] | set[str]) -> list[str]:
    """`text` in parts, cut behind the first character of every occurrence of a special token."""
    names = sorted((name for name in special if len(name) > 1), key=len, reverse=True)
    if not names:
        return [text]
    places = [m.start() + 1 for m in re.finditer("|".join(map(re.escape, names)), text)]
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def _index(whole: Ids, part: Ids) -> int | None:
    found = (i for i in range(len(whole) - len(part) + 1) if whole[i : i + len(part)] == part)
    return next(found, None)


def _tokens_in(info: Any) -> Iterator[str]:
    """Every special token that a tokeniser's configuration names."""
    if not isinstance(info, dict):
        return
    for name, value in info.items():
        if name == "added_tokens_decoder" and isinstance(value, dict):
            yield from (_content(each) for each in value.values())
        elif name.endswith("_tokens") and isinstance(value, list):
            yield from (_content(each) for each in value)
        elif name.endswith("_token") and isinstance(value, str | dict):
            yield _content(value)


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)
