"""MinHash signatures for near-duplicate candidates; knows nothing of the database.

Broder 1997 over word 3-shingles. 64 permutations in 16 bands of 4: a pair of Jaccard 0.8 shares a band with probability
1 - (1 - 0.8^4)^16 = 0.9998, of 0.5 with 0.64, of 0.2 with 0.03; candidates are then verified by the true Jaccard.

Two signers, one interface: rensa (Rust) where it has a wheel, datasketch elsewhere. Their numbers mean nothing to each
other, so each band is stored with the scheme that made it and compared with bands of its own scheme only.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ruvllm.errors import SettingsError

PERMUTATIONS, BANDS = 64, 16
_ROWS = PERMUTATIONS // BANDS
_SEED = 42  # stored bands are comparable only under the seed and shingles that made them
_SHINGLE = 3
_WORD = re.compile(r"\w+")


class Signer(Protocol):
    """Makes signatures. `scheme` names seed, shingles and hash for good: another one gets another number."""

    @property
    def scheme(self) -> int: ...

    def sign(self, shingles: Iterable[str]) -> list[int]:
        """64 unsigned 32-bit numbers, whatever the order of `shingles`."""
        ...


@dataclass(frozen=True)
class Rensa:
    scheme: int = 1

    def sign(self, shingles: Iterable[str]) -> list[int]:
        from rensa import RMinHash

        minhash = RMinHash(num_perm=PERMUTATIONS, seed=_SEED)
        minhash.update(sorted(shingles))
        digest: list[int] = minhash.digest()
        return digest


@dataclass(frozen=True)
class Datasketch:
    scheme: int = 2

    def sign(self, shingles: Iterable[str]) -> list[int]:
        from datasketch import MinHash  # type: ignore[import-untyped]

        minhash = MinHash(num_perm=PERMUTATIONS, seed=_SEED)
        minhash.update_batch([shingle.encode() for shingle in sorted(shingles)])
        return [int(number) & 0xFFFFFFFF for number in minhash.hashvalues]


SIGNERS: tuple[Signer, ...] = (Rensa(), Datasketch())  # the first that can be imported is used


@functools.cache
def signer() -> Signer:
    """The signer of this installation.

    Raises:
        SettingsError: neither package is installed.
    """
    for each in SIGNERS:
        try:
            each.sign(["probe"])
        except ImportError:
            continue
        return each
    raise SettingsError("MinHash: neither rensa nor datasketch is installed; run 'pip install datasketch'")


@dataclass(frozen=True)
class Bands:
    """16 signed 64-bit numbers; near-duplicates signed by one scheme share at least one at the same place."""

    scheme: int
    hashes: tuple[int, ...]


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


def signed(text: str, by: Signer | None = None) -> Bands:
    """The bands of `text`, by this installation's signer unless another is given."""
    by = by or signer()
    signature = by.sign(shingles(text))
    return Bands(by.scheme, tuple(_digest(signature[i : i + _ROWS]) for i in range(0, PERMUTATIONS, _ROWS)))


def bands(text: str) -> list[int]:
    """The hashes of `signed(text)`."""
    return list(signed(text).hashes)


def _digest(rows: list[int]) -> int:
    packed = hashlib.blake2b(struct.pack(f"<{_ROWS}I", *rows), digest_size=8).digest()
    return int.from_bytes(packed, signed=True)
