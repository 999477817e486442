"""Rows of a snapshot as sessions: which row is which turn. Knows nothing of torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ruvllm.learning.data import Rows, Strings


def sessions_of(session: Strings, turn: Rows, rows: Rows) -> list[list[int]]:
    """Lists of rows, one a session in the order of its turns; a row outside a session is a session of one.

    A turn that was not collected is left out: the hidden state of the turn before it is carried over the gap.
    """
    found: dict[str, list[int]] = {}
    for row in rows.tolist():
        name = str(session[row])
        found.setdefault(f"s:{name}" if name else f"r:{row}", []).append(row)
    return [sorted(members, key=lambda row: (int(turn[row]), row)) for members in found.values()]


def unrolled(sessions: list[list[int]]) -> NDArray[np.int64]:
    """(S, T): rows, -1 behind a session's last turn."""
    longest = max(map(len, sessions))
    return np.array([members + [-1] * (longest - len(members)) for members in sessions], dtype=np.int64)
