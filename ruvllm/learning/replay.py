"""Experience replay by reservoir sampling (Vitter 1985, algorithm R). Knows nothing of what a key stands for.

After `seen` experiences each of them is in the reservoir with probability capacity / seen. The algorithm is a pure
function; `Reservoir` keeps slots and count in Postgres, changed in one transaction, so that a crash tears nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.errors import LearningError


def offer(slots: list[str], seen: int, keys: Sequence[str], capacity: int, rng: np.random.Generator) -> int:
    """Offer keys one after another; changes `slots` in place, returns the new count of what was seen."""
    for key in keys:
        seen += 1
        if len(slots) < capacity:
            slots.append(key)
            continue
        place = int(rng.integers(seen))
        if place < capacity:
            slots[place] = key
    return seen


class Reservoir:
    """The reservoir of a database's tenant. `seed` makes its draws repeatable.

    Raises:
        LearningError: the capacity is below 1.
    """

    def __init__(self, database: Database, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise LearningError(f"replay reservoir: capacity {capacity}, want 1 or more")
        self.database, self.capacity, self._seed = database, capacity, seed

    def keys(self) -> list[str]:
        """What the reservoir holds, by slot."""
        with self.database.transaction() as connection:
            return list(self._held(connection).values())

    def seen(self) -> int:
        """How many experiences were offered so far."""
        with self.database.transaction() as connection:
            return self._seen(connection)

    def offer(self, keys: Sequence[str]) -> int:
        """Offer keys of learning.oracle_queries, but those it holds already; returns how many were new.

        One transaction under a lock, so concurrent offers cannot interleave. The generator is seeded by the count so
        far and the keys: an offer that is repeated after a crash draws what it drew before.
        """
        with self.database.transaction() as connection:
            connection.execute(_LOCK, (self.database.tenant,))
            held, seen = self._held(connection), self._seen(connection)
            slots = list(held.values())
            fresh = [key for key in dict.fromkeys(keys) if key not in set(slots)]
            seen = offer(slots, seen, fresh, self.capacity, self._rng(seen, fresh))
            self._store(connection, held, slots, seen)
        return len(fresh)

    def _rng(self, seen: int, keys: Sequence[str]) -> np.random.Generator:
        digest = hashlib.sha256("\n".join([str(self._seed), str(seen), *keys]).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def _held(self, connection: Connection) -> dict[int, str]:
        """Slot -> key; a query that was deleted leaves a gap, which `offer` closes."""
        rows = connection.execute("SELECT slot, query FROM learning.replay ORDER BY slot").fetchall()
        return {row[0]: row[1] for row in rows[: self.capacity]}

    def _seen(self, connection: Connection) -> int:
        row = connection.execute("SELECT seen FROM learning.replay_counter").fetchone()
        return int(row[0]) if row else 0

    def _store(self, connection: Connection, held: dict[int, str], slots: list[str], seen: int) -> None:
        changed = [slot for slot, key in enumerate(slots) if held.get(slot) != key]
        connection.execute("DELETE FROM learning.replay WHERE slot = ANY(%s) OR slot >= %s", (changed, len(slots)))
        tenant = self.database.tenant
        connection.cursor().executemany(_PUT, [(tenant, slot, slots[slot]) for slot in changed])
        connection.execute(_COUNT, (tenant, seen))


_LOCK = "SELECT pg_advisory_xact_lock(hashtext('ruvllm.replay'), hashtext(%s))"
_PUT = "INSERT INTO learning.replay (tenant, slot, query) VALUES (%s, %s, %s)"
_COUNT = """
    INSERT INTO learning.replay_counter (tenant, seen) VALUES (%s, %s)
    ON CONFLICT (tenant) DO UPDATE SET seen = EXCLUDED.seen
"""
