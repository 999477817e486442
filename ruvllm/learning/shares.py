"""Parts of an oracle collection, for workers that share it. Knows nothing of who the workers are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ruvllm.errors import LearningError


@dataclass(frozen=True)
class Share:
    """One of `of` parts of the questions, told by their keys, so that nobody has to hand them out."""

    number: int  # 0 to of - 1
    of: int
    lanes: int = 0  # pools of models at once; 0: as many as there are cores

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of or self.lanes < 0:
            raise LearningError(
                f"share {self.number} of {self.of}, {self.lanes} lanes: want a number from 0 and below how many there"
                " are, and 0 lanes or more"
            )

    def has(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number


WHOLE = Share(0, 1)
