"""How right an answer is, given the accepted ones. Knows nothing of models, memory or the corpus.

Words are compared after SQuAD's normalisation (Rajpurkar et al. 2016: lower case, no punctuation, no articles), with
numbers compared by value. `score_answer` is what the rest of the system calls quality.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

SPARE_WORDS = 12  # an answer may say this much ...
WORDS_PER_GOLD_WORD = 3  # ... and this much more for each word of the accepted answer, before it counts as a dump
PARTIAL_CREDIT = 0.5  # at most, for an answer that shares words with the accepted one but does not contain it

_ARTICLES = {"a", "an", "the"}
_SCALE = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_OPPOSITE = {"yes": "no", "no": "yes"}
_DIGITS = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_UNITS = r"(?:km2?|m|ft|nm|kg|kwh|kw|mw|usd|years?|st|nd|rd|th)\b"
_TOKEN = re.compile(
    rf"(?P<number>(?<![\w.])(?<![0-9],)-?(?:{_DIGITS})(?:\.[0-9]+)?(?![0-9])(?=[^\w]|$|{_UNITS}))"
    rf"|(?P<code>(?<!\w)\.[a-z]{{2,3}}(?!\w))"
    rf"|(?P<word>\w+)"
    rf"|(?P<percent>%)"
    rf"|(?P<separator>[;,\n]|(?<=[^\W\d_])\.(?=\s|$))"
)
_ORDINAL = re.compile(r"(?<=[0-9])(?:st|nd|rd|th)\b")
_INITIALS = re.compile(r"\b(?:[a-z]\.){2,}")
_SIGN_BEFORE_MONEY = re.compile(r"-\s?[$€£]|[$€£]\s?-(?=[0-9])")
_SEPARATOR = "\n"


def normalise(text: str) -> str:
    """Words and numbers as they are compared, between single spaces: 'The 1,234.50 km' -> '1234.5 km'."""
    return " ".join(_words(text))


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1.0 where the normalised answer is one of the normalised golds, else 0.0."""
    return float(any(_same(answer, gold) for gold in golds))


def f1(answer: str, golds: Sequence[str]) -> float:
    """The best F1 over `golds` of the answer's words against the gold's, both as multisets."""
    return max((_f1_one(answer, gold) for gold in golds), default=0.0)


def score_answer(answer: str, golds: Sequence[str]) -> float:
    """How right `answer` is, in [0, 1]: the best score over `golds` (an answer and its aliases).

    With a the answer's words (normalised, numbers by value: '1 million' is '1,000,000', '5%' is '5 percent') and g a
    gold's, and brevity = min(1, (12 + 3 |g|) / |a|), so that a dump of everything is worth little:

        yes or no      0 where both words occur in the answer or neither, else the rule below
        a list         F1 over its items times brevity (items stand between semicolons): recall is the share of
                       items found in the answer, precision the found ones among these and the wrong items
        anything else  brevity where g is a run of words of a; otherwise half of F1(a, g), and nothing where g holds
                       a number or is a single word
    """
    return max((_score_one(answer, gold) for gold in golds), default=0.0)


def _score_one(answer: str, gold: str) -> float:
    said, wanted = _words(answer), _words(gold)
    if _same(answer, gold):
        return 1.0
    if not wanted or not said:
        return 0.0
    items = _items(gold)
    if len(items) > 1:
        return _list_f1(answer, items) * _brevity(said, wanted)
    if len(wanted) == 1 and _OPPOSITE.get(wanted[0]) in said:
        return 0.0
    if _find(said, wanted) is not None:
        return _brevity(said, wanted)
    if len(wanted) == 1 or any(_is_number(word) for word in wanted):
        return 0.0
    return PARTIAL_CREDIT * _f1_words(said, wanted)


def _brevity(said: Sequence[str], wanted: Sequence[str]) -> float:
    return min(1.0, (SPARE_WORDS + WORDS_PER_GOLD_WORD * len(wanted)) / len(said))


def _same(answer: str, gold: str) -> bool:
    """Equal after normalisation; where nothing is left of either (punctuation, articles), as they are written."""
    said, wanted = _words(answer), _words(gold)
    return said == wanted if said or wanted else answer.strip() == gold.strip()


def _f1_one(answer: str, gold: str) -> float:
    said, wanted = _words(answer), _words(gold)
    return _f1_words(said, wanted) if said and wanted else float(_same(answer, gold))


def _f1_words(said: Sequence[str], wanted: Sequence[str]) -> float:
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def _items(gold: str) -> list[list[str]]:
    """The distinct items of a list answer, the longest first: 'Guinea' must not be found inside 'Guinea-Bissau'."""
    items = {tuple(_words_in_parts(part)[0]) for part in gold.split(";")} - {()}
    return [list(item) for item in sorted(items, key=lambda item: (-len(item), item))]


def _list_f1(answer: str, items: list[list[str]]) -> float:
    words, parts = _words_in_parts(answer)
    right: set[int] = set()
    found = 0
    for item in items:
        at = _find(words, item)
        if at is not None:
            found += 1
            right.update(parts[at : at + len(item)])
            words[at : at + len(item)] = [""] * len(item)
    wrong = len(set(parts) - right)
    return 2 * found / (found + wrong + len(items))


def _words_in_parts(text: str) -> tuple[list[str], list[int]]:
    """Words but 'and', and for each of them in which part it stands; parts are divided by , ; . 'and' and line ends."""
    words: list[str] = []
    parts: list[int] = []
    part = 0
    for token in _tokens(text):
        if token in (_SEPARATOR, "and"):
            part += 1
        else:
            words.append(token)
            parts.append(part)
    return words, parts


def _find(words: Sequence[str], wanted: Sequence[str]) -> int | None:
    last = len(words) - len(wanted)
    return next((at for at in range(last + 1) if list(words[at : at + len(wanted)]) == list(wanted)), None)


def _words(text: str) -> list[str]:
    return [token for token in _tokens(text) if token != _SEPARATOR]


def _tokens(text: str) -> Iterator[str]:
    """Words, numbers in one spelling, and a line end for whatever divides items."""
    found = [(match.lastgroup, match.group()) for match in _TOKEN.finditer(_plain(text))]
    before = ""
    for index, (kind, token) in enumerate(found):
        following = found[index + 1][1] if index + 1 < len(found) else ""
        if kind == "number" or (kind == "word" and re.fullmatch("[0-9]+", token)):
            yield _number(token, _SCALE.get(following, 0))
        elif kind == "separator":
            yield _SEPARATOR
        elif token not in _ARTICLES and not (before == "number" and token in _SCALE):
            yield "percent" if kind == "percent" else token
        before = kind or ""


def _plain(text: str) -> str:
    """Lower case without accents, apostrophes and typographic variants."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text.replace("\u2212", "-")).casefold())
    text = "".join(char for char in text if not unicodedata.combining(char))
    text = re.sub(r"['\u2019\u2018`]s\b|['\u2019\u2018`]", "", text).replace("per cent", "percent")
    text = _INITIALS.sub(lambda match: match.group().replace(".", ""), text)
    text = re.sub(r"\bminus (?=[0-9])", "-", text)
    return _ORDINAL.sub("", _SIGN_BEFORE_MONEY.sub("-", text))


def _number(text: str, shift: int) -> str:
    """One spelling for one value; digits are moved as text, so that no length of number can fail."""
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, fraction = digits.replace(",", "").partition(".")
    fraction = fraction.ljust(shift, "0")
    whole, fraction = (whole + fraction[:shift]).lstrip("0") or "0", fraction[shift:].rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else sign + value


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", word) is not None
