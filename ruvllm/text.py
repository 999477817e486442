"""Text at the door: what is refused, what is mended, and how long text is cut; knows nothing of models or databases."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from ruvllm.errors import InputError, TooLargeError

LIMIT = 20_000  # characters of one text, the CHECK of memory.node_texts
_NEWLINE = re.compile(r"\r\n?")
_CONTROL = re.compile(r"[\x01-\x08\x0b-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PARAGRAPH = re.compile(r"\n\s*\n")
# after . ! ? … and their Arabic, Devanagari and CJK kin; CJK writes no space behind a full stop
_SENTENCE = re.compile(r"(?<=[.!?…؟।])[\"'”’)\]]*\s+|(?<=[。！？])\s*")
_INVISIBLE = {"Zs", "Zl", "Zp", "Cc", "Cf"}


def whole_question(question: str, history: Sequence[Sequence[str]]) -> str:
    """A follow-up alone means nothing to who was not there: it goes behind the question that opened its session.

    `history` holds (question, answer) of the earlier turns.
    """
    return f"{history[0][0]} {question}" if history else question


def clean_text(text: str, name: str = "text", limit: int = LIMIT) -> str:
    """`text` in NFC, newlines as \\n, other control characters as spaces, without space around it.

    Raises:
        InputError: it is empty or blank, or holds a lone surrogate or NUL, which Postgres cannot store.
        TooLargeError: it is over `limit` characters, before or after NFC.
    """
    _refuse_long(text, name, limit)
    if found := _SURROGATE.search(text):
        raise InputError(f"{name}: got a lone surrogate at character {found.start()}, want valid Unicode")
    if "\x00" in text:
        raise InputError(f"{name}: got a NUL at character {text.index(chr(0))}, want text without NUL")
    mended = unicodedata.normalize("NFC", _CONTROL.sub(" ", _NEWLINE.sub("\n", text))).strip()
    if not any(unicodedata.category(character) not in _INVISIBLE for character in mended):
        raise InputError(f"{name}: got an empty text, want at least one visible character")
    _refuse_long(mended, name, limit)  # NFC can lengthen: U+0958 becomes two characters
    return mended


def is_clean(text: str, limit: int = LIMIT) -> bool:
    """Whether `clean_text` would hand `text` back unchanged."""
    try:
        return clean_text(text, limit=limit) == text
    except InputError:
        return False


def _refuse_long(text: str, name: str, limit: int) -> None:
    if len(text) > limit:
        raise TooLargeError(f"{name}: got {len(text)} characters, want at most {limit}")


def chunk_text(text: str, limit_chars: int = 600) -> list[str]:
    """`text` in pieces of at most `limit_chars` characters, in order; nothing but white space is lost.

    Paragraphs stay whole where they fit, then sentences, then words; only a longer word is cut.
    """
    if limit_chars < 1:
        raise InputError(f"limit_chars: got {limit_chars}, want at least 1")
    return _packed(_PARAGRAPH.split(text), "\n\n", limit_chars)


def _packed(pieces: Iterable[str], joint: str, limit: int) -> list[str]:
    """Greedy: neighbours share a chunk while they fit; a piece over the limit is broken at the next finer joint."""
    chunks: list[str] = []
    open_chunk = ""
    for piece in filter(None, (p.strip() for p in pieces)):
        joined = f"{open_chunk}{joint}{piece}" if open_chunk else piece
        if len(joined) <= limit:
            open_chunk = joined
            continue
        if open_chunk:
            chunks.append(open_chunk)
        *whole, open_chunk = [piece] if len(piece) <= limit else _broken(piece, joint, limit)
        chunks.extend(whole)
    return [*chunks, open_chunk] if open_chunk else chunks


def _broken(piece: str, joint: str, limit: int) -> list[str]:
    if joint == "\n\n":
        return _packed(_sentences(piece), " ", limit)
    words = piece.split()
    return _packed(words, " ", limit) if len(words) > 1 else list(_cut(piece, limit))


def _sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for gap in _SENTENCE.finditer(paragraph):
        yield paragraph[start : gap.end()]  # closing quotes belong to the sentence
        start = gap.end()
    yield paragraph[start:]


def _cut(word: str, limit: int) -> Iterator[str]:
    """Cut before a base character where there is one, so that no accent is torn from its letter."""
    while len(word) > limit:
        at = next((i for i in range(limit, 0, -1) if not unicodedata.combining(word[i])), limit)
        yield word[:at]
        word = word[at:]
    yield word
