"""Long token sequences in even windows, so that an encoder's limit never cuts text; knows nothing of encoders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def windows(tokens: Sequence[int], longest: int) -> list[Sequence[int]]:
    """`tokens` in the fewest windows of at most `longest`, of lengths that differ by one at most; none left out.

    Even lengths let the windows' vectors count equally in their mean. No token gives one empty window.
    """
    count = max(1, -(-len(tokens) // longest))
    bounds = [len(tokens) * i // count for i in range(count + 1)]
    return [tokens[a:b] for a, b in pairwise(bounds)]
