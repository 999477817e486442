"""A stored question as the router saw it: the features that came with its answer. Knows nothing of why it decided so.

The hidden state of its session is not stored: a follow-up question is read as if it were the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.database.pool import Database
from ruvllm.errors import InputError
from ruvllm.router.layout import LAYOUT

_COLUMNS = "request_id, question, turn, tier, context_bin, decided_by, router_version, layout_hash, features"
_FIND = f"""
    SELECT {_COLUMNS} FROM serving.interactions
    WHERE tenant = %(tenant)s AND request_id = %(request)s
"""  # noqa: S608  # names above, no values
_LATEST = f"""
    SELECT {_COLUMNS} FROM serving.interactions
    WHERE tenant = %(tenant)s ORDER BY id DESC LIMIT %(most)s
"""  # noqa: S608


@dataclass(frozen=True, eq=False)
class Asked:
    """A question, what was done with it then, and its features (128,)."""

    request_id: str
    question: str
    turn: int
    tier: str
    context_bin: int
    decided_by: str
    router_version: str
    features: NDArray[np.float32]


def asked(database: Database, request_id: str) -> Asked:
    """The question of that request.

    Raises:
        InputError: there is none, or its features are of another layout than today's.
    """
    with database.transaction() as connection:
        row = connection.execute(_FIND, {"tenant": database.tenant, "request": request_id}).fetchone()
    if row is None:
        raise InputError(f"no stored question {request_id}; ask one with `ruvllm ask`, or check the id")
    return _asked(row)


def latest(database: Database, most: int = 1) -> list[Asked]:
    """The last questions, the newest first.

    Raises:
        InputError: there is none, or the features of one are of another layout than today's.
    """
    with database.transaction() as connection:
        rows = connection.execute(_LATEST, {"tenant": database.tenant, "most": most}).fetchall()
    if not rows:
        raise InputError("no stored question at all; ask one with `ruvllm ask`")
    return [_asked(row) for row in rows]


def _asked(row: tuple[Any, ...]) -> Asked:
    layout_hash, features = row[7:]
    if layout_hash != LAYOUT.hash:
        raise InputError(
            f"question {row[0]}: its features are of layout {layout_hash[:12] or 'none'}, want {LAYOUT.hash[:12]};"
            " explain one that was asked since"
        )
    return Asked(row[0], row[1], row[2], row[3], row[4], row[5], row[6], np.array(features, dtype=np.float32))
