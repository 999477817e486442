"""Turns the Factbook's HTML fragments into plain text of a bounded length; knows nothing of fields or countries."""

from __future__ import annotations

import html
import re
import unicodedata

_BREAK = re.compile(r"<\s*(?:br|/p|/li|/div)\s*/?\s*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_NOTE = re.compile(r"[;,.(\s]*\bnote(?:\s*\d*\s*:|\s+-|\s+\d+:).*$", re.IGNORECASE | re.DOTALL)
_SPACE = re.compile(r"\s+")
_STRAY = re.compile(r"\s+([;,.)])")
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "\u200b": ""})
_EMPTY = {"", "na", "n/a", "none", "-", "not available"}


def plain(fragment: str) -> str:
    """Text without tags, entities, notes and line breaks; a break becomes '; '. Empty where nothing is said."""
    text = html.unescape(_BREAK.sub("; ", fragment))
    text = _TAG.sub("", html.unescape(text)).translate(_TYPOGRAPHY)
    text = _SPACE.sub(" ", unicodedata.normalize("NFC", text))
    text = re.sub(r"(?:;\s*){2,}", "; ", _NOTE.sub("", text))
    text = text.replace(" est.)", ")")
    text = _STRAY.sub(r"\1", text).strip(" ;,")
    return "" if text.casefold() in _EMPTY else text


def clip(text: str, limit: int) -> str:
    """`text` if it fits, else its beginning up to the last '; ', ', ' or ' ' that fits, and an ellipsis."""
    if len(text) <= limit:
        return text
    head = text[: limit - 2]
    for separator in ("; ", ", ", " "):
        at = head.rfind(separator)
        if at > limit // 2:
            return head[:at].rstrip(" ;,.-(") + " …"
    return head + " …"


def is_clipped(text: str) -> bool:
    return text.endswith("…")
