"""What a question's words say: query type and domain, by tables that can be read. Knows nothing of vectors.

Rules, not models: each is a set of words or phrases, so that a surprising feature can be traced to its word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ruvllm.router.layout import DOMAINS, QUERY_TYPES

Array = NDArray[np.float32]

_READ_CHARACTERS = 2000  # of a question: its wording shows at the start, and the time stays bounded
_WORD = re.compile(r"\w+")

# "^" stands for the question's start
_PHRASES: Mapping[str, tuple[str, ...]] = {
    "factual": (
        "what is", "what are", "what was", "what s", "who is", "who was", "who are", "when did", "when was",
        "where is", "where are", "which", "how many", "how much", "how large", "how big", "how long", "how high",
        "how old", "how far", "name the", "give the", "tell me the", "list the", "define", "how fast",
        "how often", "yes or no",
    ),
    "reasoning": (
        "why", "explain", "because", "prove", "derive", "deduce", "infer", "reason", "reasons", "calculate", "solve",
        "what if", "what would", "therefore", "together", "combined", "in total", "sum of", "implies",
        "how come", "what follows", "cause", "causes",
    ),
    "creative": (
        "write a", "write an", "write me", "compose", "poem", "story", "song", "lyrics", "haiku", "slogan", "imagine",
        "invent", "brainstorm", "creative", "joke", "draft",
    ),
    "procedural": (
        "how to", "how do i", "how do you", "how do we", "how can i", "how can we", "how should i", "steps",
        "step by step", "instructions", "guide", "install", "configure", "set up", "recipe", "procedure",
    ),
    "comparison": (
        "compare", "compared", "comparison", "versus", "vs", "difference between", "differences between", "differ",
        "better", "worse", "larger", "smaller", "than", "which of", "more or", "pros and cons", "similarities",
    ),
    "conversational": (
        "hello", "^ hi", "^ hey", "thanks", "thank you", "good morning", "good evening", "how are you", "please help",
        "what about", "how about", "^ and", "^ ok", "^ okay", "sorry",
    ),
}  # fmt: skip

_DOMAIN_WORDS: Mapping[str, str] = {
    "geography": (
        "geography area border borders boundary coast coastline coordinates elevation terrain mountain peak river "
        "rivers lake lakes island islands ocean sea land location continent capital largest highest lowest point "
        "map region square"
    ),
    "people": (
        "people society population populations inhabitants ethnic language languages religion religions birth "
        "births death deaths age median literacy fertility urbanization nationality migration growth sex children "
        "marriage"
    ),
    "environment": (
        "environment environmental climate weather pollution emissions carbon dioxide forest forests waste "
        "wildlife rainfall hazards natural water air"
    ),
    "government": (
        "government governments constitution president king queen monarch minister parliament legislature "
        "election elections court party parties suffrage flag anthem independence republic executive legislative "
        "judicial branch ambassador citizenship"
    ),
    "economy": (
        "economy economic gdp income inflation unemployment export exports import imports currency exchange debt "
        "budget revenues revenue taxes industry industries agriculture agricultural products labor labour poverty "
        "trade bank market price"
    ),
    "energy": (
        "energy electricity power oil petroleum gas coal nuclear solar wind hydroelectric fuel kwh megawatts "
        "consumption"
    ),
    "communications": (
        "communications communication telephone telephones mobile cellular internet broadband broadcast media "
        "television radio telecom domain subscriptions subscribers"
    ),
    "transport": (
        "transport transportation transit railway railways railroad road roads roadways highway airport airports "
        "heliports port ports waterways merchant ship ships vessels airline aircraft pipelines car train"
    ),
    "military": (
        "military army navy force forces armed security weapon weapons war conscription soldiers defence defense "
        "terrorism terrorist deployments"
    ),
    "history": (
        "history historical background ancient century empire medieval revolution colony colonial founded dynasty "
        "treaty introduction"
    ),
    "science": (
        "science physics chemistry biology atom molecule cell species planet gravity quantum experiment theory "
        "space astronomy energy evolution element rocket satellite"
    ),
    "mathematics": (
        "mathematics math maths equation integral derivative theorem algebra geometry number numbers prime sum "
        "product fraction probability matrix triangle calculate arithmetic"
    ),
    "health": (
        "health disease diseases hospital medicine medical doctor physicians symptom symptoms treatment vaccine "
        "obesity hiv aids mortality expectancy alcohol tobacco sanitation diet"
    ),
    "programming": (
        "programming python pydoc pydocs stdlib function functions class method module code string list dict "
        "dictionary tuple exception import iterator decorator generator argument arguments syntax statement "
        "expression keyword variable type object integer compile bug"
    ),
    "arts": (
        "arts art music film movie novel book painting painter poet poem song theatre theater literature "
        "sculpture actor singer"
    ),
}


def _rarity(table: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Word -> {name: weight}; a word that several names share counts for each by its part."""
    owners = Counter(word for words in table.values() for word in set(words.split()))
    weights: dict[str, dict[str, float]] = {}
    for name, words in table.items():
        for word in words.split():
            weights.setdefault(word, {})[name] = 1.0 / owners[word]
    return weights


_DOMAIN_OF = _rarity(_DOMAIN_WORDS)
_PHRASE_OF = tuple((f" {phrase} ", name) for name, phrases in _PHRASES.items() for phrase in phrases)


def words_of(question: str) -> list[str]:
    """The lower-cased words of the question's start."""
    return _WORD.findall(question[:_READ_CHARACTERS].lower())


def query_type(words: Sequence[str]) -> Array:
    """(6,) shares of the rules that fired; all zero where none did."""
    padded = f" ^ {' '.join(words)} "
    return _shares(Counter(name for phrase, name in _PHRASE_OF if phrase in padded), QUERY_TYPES)


def domain(words: Sequence[str], hit_domains: Sequence[str], similarities: NDArray[np.float64]) -> Array:
    """(16,) shares: the mean of what the words and the hits say, or the one that says anything."""
    said = _shares(_scores(words, _DOMAIN_OF), DOMAINS)
    votes: dict[str, float] = {}
    for name, weight in zip(hit_domains, similarities.tolist(), strict=True):
        if name:
            known = known_domain(name)
            votes[known] = votes.get(known, 0.0) + max(weight, 0.0)
    found = _shares(votes, DOMAINS)
    if not said.any() or not found.any():
        return said + found
    return np.float32(0.5) * (said + found)


@lru_cache(maxsize=1024)
def known_domain(name: str) -> str:
    """A node's domain among ours: itself, or the one its words speak for ('People and Society'), or 'other'."""
    if (lowered := name.lower()) in DOMAINS:
        return lowered
    scores = _scores(words_of(name.replace("_", " ")), _DOMAIN_OF)
    return max(scores, key=lambda candidate: scores[candidate]) if scores else "other"


def _scores(words: Sequence[str], table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for word in words:
        for name, weight in table.get(word, _NOTHING).items():
            scores[name] = scores.get(name, 0.0) + weight
    return scores


def _shares(scores: Mapping[str, float], places: Sequence[str]) -> Array:
    total = sum(scores.values()) or 1.0
    return np.array([scores.get(place, 0.0) / total for place in places], dtype=np.float32)


_NOTHING: Mapping[str, float] = {}
