"""The language of a question, by py3langid's naive Bayes over byte n-grams. Knows nothing of the layout's other places.

The detector chooses among the layout's eight languages and some of scripts of their own, so that a question in one of
those gets no place instead of a wrong one. A question without a letter has no language.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ruvllm.router.layout import LANGUAGES

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_CODES = dict(zip(("en", "es", "fr", "de", "it", "pt", "ru", "zh"), LANGUAGES, strict=True))
_OTHERS = ("ja", "ko", "ar", "he", "hi", "th", "el", "ka", "hy")  # no place, and no letters in common with ours
_READ_CHARACTERS = 400  # of a question: more changes nothing, and the time stays bounded


def language(question: str) -> NDArray[np.float32]:
    """(8,) one-hot; all zero where it has no letter or is in none of the eight."""
    start = question[:_READ_CHARACTERS]
    name = _CODES.get(_detector().classify(start)[0]) if any(map(str.isalpha, start)) else None
    return np.array([float(place == name) for place in LANGUAGES], dtype=np.float32)


@lru_cache(maxsize=1)
def _detector() -> LanguageIdentifier:
    """Read once, 0.3 s: not when this module is imported."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    detector = LanguageIdentifier.from_model_file(MODEL_FILE)
    detector.set_languages([*_CODES, *_OTHERS])
    return detector


def warm() -> None:
    """Read the detector's tables now, so that no request waits for them."""
    _detector()
