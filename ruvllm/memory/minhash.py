"""MinHash signatures for near-duplicate candidates; knows nothing of the database.

Broder 1997 over word 3-shingles. 64 permutations in 16 bands of 4: a pair of Jaccard 0.8 shares a band with probability
1 - (1 - 0.8^4)^16 = 0.9998, of 0.5 with 0.64, of 0.2 with 0.03; candidates are then verified by the true Jaccard.
"""

from __future__ import annotations

import hashlib
import re
import struct

PERMUTATIONS, BANDS = 64, 16
_ROWS = PERMUTATIONS // BANDS
_SEED = 42  # stored bands are comparable only under the seed and shingles that made them
_SHINGLE = 3
_WORD = re.compile(r"\w+")


def shingles(text: str) -> frozenset[str]:
    """Runs of three words; a shorter text is one shingle."""
    words = _WORD.findall(text.casefold()) or [text]
    if len(words) <= _SHINGLE:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1))


def jaccard(first: str, second: str) -> float:
    """|A ∩ B| / |A ∪ B| of the texts' shingles."""
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def bands(text: str) -> list[int]:
    """16 signed 64-bit numbers; near-duplicates share at least one at the same place."""
    from rensa import RMinHash

    minhash = RMinHash(num_perm=PERMUTATIONS, seed=_SEED)
    minhash.update(sorted(shingles(text)))
    digest: list[int] = minhash.digest()
    return [_digest(digest[i : i + _ROWS]) for i in range(0, PERMUTATIONS, _ROWS)]


def _digest(rows: list[int]) -> int:
    packed = hashlib.blake2b(struct.pack(f"<{_ROWS}I", *rows), digest_size=8).digest()
    return int.from_bytes(packed, signed=True)
