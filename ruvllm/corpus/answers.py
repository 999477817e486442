"""Reads a fact's text into the exact answer and its aliases; knows nothing of countries or questions.

Every reader takes the text of a field as a passage tells it and returns (answer, *aliases), or () where there is no
short exact answer. The answer stands in the text letter by letter, except for lists, whose items do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from ruvllm.corpus.clean import is_clipped

Reader = Callable[[str], tuple[str, ...]]

MAX_ANSWER = 80  # characters

_NUMBER = r"-?\$?\d{1,3}(?:,?\d{3})*(?:\.\d+)?(?: (?:million|billion|trillion))?"
_AMOUNT = re.compile(
    rf"^(?P<number>{_NUMBER})(?P<unit>%| (?:births|deaths)/1,000 [a-z ]+?| [a-zA-Z][\w/ ]*?)?"
    r"(?= *\(|,|;|$| of | annual )"
)
_DATE = re.compile(r"(\d{1,2}) (January|February|March|April|May|June|July|August|September|October|November|December)")
_SCALE = {"million": 10**6, "billion": 10**9, "trillion": 10**12}
_LONG_UNITS = {"sq km": ("square kilometers", "km2"), "km": ("kilometers",), "m": ("meters",)}
_VAGUE = ("no ", "unknown", "unnamed", "various", "none", "not ", "see ", "formerly", "less than")
_SHORT_NAMES = {
    "USA": ("US", "United States"),
    "UAE": ("United Arab Emirates",),
    "UK": ("United Kingdom",),
    "NZ": ("New Zealand",),
    "S. Korea": ("South Korea",),
}
_RULERS = {
    "the UK": ("UK", "United Kingdom", "Britain", "Great Britain"),
    "the US": ("US", "USA", "United States"),
    "the Soviet Union": ("Soviet Union", "USSR"),
    "the Ottoman Empire": ("Ottoman Empire",),
}


def number(text: str) -> Decimal | None:
    """The value that `text` begins with: '1.07 billion cubic meters' -> 1070000000."""
    found = re.match(_NUMBER, text)
    if found is None:
        return None
    digits, _, scale = found.group().replace("$", "").replace(",", "").partition(" ")
    try:
        return Decimal(digits) * _SCALE.get(scale, 1)
    except InvalidOperation:
        return None


def amount(text: str) -> tuple[str, ...]:
    """A number with its unit: '238,533 sq km' -> ('238,533 sq km', '238,533', '238,533 square kilometers', ...)."""
    found = _AMOUNT.match(text)
    if found is None or is_clipped(text):
        return ()
    bare, unit = found["number"], (found["unit"] or "").strip()
    longer = [f"{bare} {name}" for name in _LONG_UNITS.get(unit, ())]
    written = f"{bare}{found['unit'] or ''}"
    return _unique(written, bare, *longer, bare.replace("$", ""))


def coast(text: str) -> tuple[str, ...]:
    """As `amount`; of a landlocked country that word is an answer too."""
    return (*amount(text), "landlocked") if "landlocked" in text else amount(text)


def boundary(text: str) -> tuple[str, ...]:
    """As `amount`; an island has no land boundary to ask about."""
    return amount(text) if number(text) else ()


def count(text: str) -> tuple[str, ...]:
    """A bare number of things: '11 (2025)' -> ('11',)."""
    found = re.match(rf"{_NUMBER}(?= *\(|$|;)", text)
    return (found.group(),) if found else ()


def phrase(text: str) -> tuple[str, ...]:
    """The first clause, without what stands in brackets: 'tropical; hot (in the north)' -> ('tropical',)."""
    clause = re.split(r";|,(?= (?:but|which|where|with)\b)", text)[0]
    bare = re.split(r" [(\[]", clause)[0].strip(" ,")
    return () if is_clipped(bare) or bare.casefold().startswith(_VAGUE) else _short(bare)


def name(text: str) -> tuple[str, ...]:
    """As `phrase`; a name in brackets is an alias: 'Parliament (Barlaman)' -> ('Parliament', 'Barlaman')."""
    inside = re.findall(r"^[^();]+\(([A-Z][^()]+)\)", text)
    answer = phrase(text)
    return (*answer, *inside) if answer else ()


def capital(text: str) -> tuple[str, ...]:
    """As `name`, where there is one capital."""
    if ";" in text or ")," in text or is_clipped(text):
        return ()
    answer = name(text)
    return _unique(*answer, answer[0].split(",")[0]) if answer else ()


def symbol(text: str) -> tuple[str, ...]:
    """One symbol as it is, several as a list."""
    return items(re.sub(r" \([^()]*\)(?=,|$)", "", text)) if "," in text else phrase(text)


def chambers(text: str) -> tuple[str, ...]:
    words = {"unicameral": "one chamber", "bicameral": "two chambers"}
    return (text, words[text]) if text in words else ()


def place_name(text: str) -> tuple[str, ...]:
    """The name before a height: 'Mount Afadjato 885 m' -> ('Mount Afadjato',)."""
    bare = re.split(r" [(\[]| -?\d[\d,.]* m\b|;|,", text)[0].strip()
    if re.search(r"\d", bare) or bare.casefold().startswith(_VAGUE):
        return ()
    return _short(bare, *re.findall(r"^[^(\d]+\(([A-Z][^()]{2,30})\)", text)[:1])


def height(text: str) -> tuple[str, ...]:
    """The height behind a name: 'Mount Afadjato 885 m' -> ('885 m', '885', '885 meters')."""
    found = re.findall(r"(?<!\S)(-?\d[\d,.]*) m(?![\w-])", text)
    if len(found) != 1 or ";" in text:
        return ()
    return (f"{found[0]} m", found[0], f"{found[0]} meters")


def date(text: str) -> tuple[str, ...]:
    """A date with its year that the text begins with: '6 March 1957 (from the UK)' -> ('6 March 1957', ...)."""
    found = re.match(_DATE.pattern + r" (\d{4})\b(?=\s*(?:\(|$))", text)
    if found is None or ";" in text:
        return ()
    day, month, year = found.groups()
    return (found.group(), f"{month} {day}, {year}", f"{day} of {month} {year}")


def ruler(text: str) -> tuple[str, ...]:
    """From whom a country became independent: '6 March 1957 (from the UK)' -> ('the UK', ...)."""
    found = re.match(rf"{_DATE.pattern} \d{{4}} \(from ([^();,]+)\)$", text)
    return _short(found[3], *_RULERS.get(found[3], ())) if found else ()


def holiday_name(text: str) -> tuple[str, ...]:
    """'Independence Day, 6 March (1957)' -> ('Independence Day',)."""
    name = re.split(r", (?=\d)| \(", text)[0].strip()
    single = ";" not in text and "," not in name and _DATE.search(text)
    return _short(name) if single else ()


def holiday_date(text: str) -> tuple[str, ...]:
    """'Independence Day, 6 March (1957)' -> ('6 March', 'March 6')."""
    found = _DATE.findall(text)
    if len(found) != 1 or ";" in text:
        return ()
    (day, month), *_ = found
    return (f"{day} {month}", f"{month} {day}", f"{day} of {month}")


def official_language(text: str) -> tuple[str, ...]:
    """The language marked (official), where there is exactly one."""
    found = re.findall(r"(?:^|[,;] )([A-Z][\w'\- ]+?) \(official\)", text)
    return _short(found[0]) if text.count("official") == 1 and len(found) == 1 and not is_clipped(text) else ()


def leading(text: str) -> tuple[str, ...]:
    """The first of a list of shares, which is the largest: 'Akan 45.7%, Ewe 12.8%' -> ('Akan',)."""
    shares = re.findall(r"(?:^|, )([A-Z][\w'.\-/& ]*?) (?:\([^()]*\) )?(\d[\d.]*)%", text)
    values = [Decimal(value) for _, value in shares]
    if len(values) < 2 or not text.startswith(shares[0][0]) or values[0] <= max(values[1:]):
        return ()
    return _short(shares[0][0], *_SHORT_NAMES.get(shares[0][0], ()))


def person(text: str) -> tuple[str, ...]:
    """The holder of an office: 'President John Dramani MAHAMA (since ...)' -> ('John Dramani MAHAMA', 'Mahama')."""
    found = re.match(
        r"(?:(?:President|Prime Minister|King|Queen|Chancellor|Premier|Emperor|Governor) )+([^();,]+)\(since", text
    )
    if found is None:
        return ()
    name = found[1].strip()
    family = [word.title() for word in name.split() if word.isupper() and len(word) > 2]
    return _short(name, " ".join(family)) if family and len(name.split()) > 1 else ()


def title(text: str) -> tuple[str, ...]:
    """A title in quotation marks and its translation: '"La Concorde" (The Concorde)' -> ('La Concorde', ...)."""
    found = re.match(r'"([^"]+)"(?: \(([^()]+)\))?$', text)
    return _short(found[1], *filter(None, [found[2]])) if found else ()


def currency(text: str) -> tuple[str, ...]:
    """'cedis (GHC)' -> ('cedis', 'cedi', 'GHC')."""
    found = re.match(r"([^()/;,]+) \(([A-Z]{3})\)$", text)
    if found is None:
        return ()
    plural = found[1]
    return _short(plural, *([plural[:-1]] if plural.endswith("s") else []), found[2])


def currency_code(text: str) -> tuple[str, ...]:
    found = re.match(r"[^()/;,]+ \(([A-Z]{3})\)$", text)
    return (found[1],) if found else ()


def domain_code(text: str) -> tuple[str, ...]:
    found = re.match(r"\.[a-z]{2}(?=$|;| )", text)
    return (found.group(),) if found else ()


def prefix(text: str) -> tuple[str, ...]:
    return (text,) if re.fullmatch(r"[A-Z0-9]{1,2}(?:-[A-Z])?", text) and len(text) > 1 else ()


def items(text: str) -> tuple[str, ...]:
    """A list as one answer with semicolons: 'red, yellow, green (2023)' -> ('red; yellow; green',)."""
    bare = re.sub(r" \(\d{4}\)$", "", text)
    parts = [part.strip() for part in re.split(r"[,;] (?:and )?", bare)]
    plain = all(part and len(part.split()) <= 4 and "(" not in part for part in parts)
    return _short("; ".join(parts)) if plain and 2 <= len(parts) <= 6 and not is_clipped(bare) else ()


def neighbours(text: str) -> tuple[str, ...]:
    """Names without the lengths: 'Burkina Faso 602 km; Togo 1098 km' -> ('Burkina Faso; Togo',)."""
    names = neighbour_names(text)
    return _short("; ".join(names)) if len(names) > 1 else ()


def neighbour_count(text: str) -> tuple[str, ...]:
    names = neighbour_names(text)
    words = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return (str(len(names)), *words[len(names) - 2 : len(names) - 1]) if len(names) > 1 else ()


def neighbour_names(text: str) -> list[str]:
    """Every country of a border list, or nothing where one of them cannot be read."""
    if is_clipped(text):
        return []
    names = [re.match(r"([A-Z][^\d();]*?)(?: \([^()\d]+\))? [\d,.]+ km", part.strip()) for part in text.split(";")]
    return [] if None in names else [found[1] for found in names if found]


def age(text: str) -> tuple[str, ...]:
    """'18 years of age; universal' -> ('18 years of age', '18')."""
    found = re.match(r"(\d\d) years of age(?=$|;)", text)
    return (found.group(), found[1], f"{found[1]} years") if found else ()


def _short(answer: str, *aliases: str) -> tuple[str, ...]:
    return _unique(answer, *aliases) if 1 < len(answer) <= MAX_ANSWER else ()


def _unique(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))
