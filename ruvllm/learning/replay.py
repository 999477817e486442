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


def offer_by_stratum(
    slots: dict[str, list[str]],
    seen: dict[str, int],
    stratum: str,
    keys: Sequence[str],
    capacity: int,
    rng: np.random.Generator,
) -> None:
    """Offer keys of one stratum; each stratum has a reservoir with the same share of `capacity`. Changes both dicts.

    When a stratum is new the others' shares shrink: a uniform draw of what a reservoir holds is still uniform.

    Raises:
        LearningError: there are more strata than places.
    """
    held = {**slots, stratum: slots.get(stratum, [])}
    share = capacity // len(held)
    if share < 1:
        raise LearningError(f"replay: {len(held)} strata for {capacity} places, want a capacity of {len(held)} or more")
    slots.update(held)
    for each in slots.values():
        while len(each) > share:
            each.pop(int(rng.integers(len(each))))
    seen[stratum] = offer(slots[stratum], seen.get(stratum, 0), keys, share, rng)


class Reservoir:
    """The reservoir of a database's tenant. `seed` makes its draws repeatable.

    With `by_domain` every domain has the same share of it, however often it is asked about; without, every experience
    has the same chance. It may be turned on or off at any time: a domain's count is then taken from its share of what
    the reservoir holds, or the counts are added up.

    Raises:
        LearningError: the capacity is below 1.
    """

    def __init__(self, database: Database, capacity: int, seed: int = 0, by_domain: bool = False) -> None:
        if capacity < 1:
            raise LearningError(f"replay reservoir: capacity {capacity}, want 1 or more")
        self.database, self.capacity, self._seed, self._by_domain = database, capacity, seed, by_domain

    def keys(self) -> list[str]:
        """What the reservoir holds, by slot."""
        with self.database.transaction() as connection:
            return list(_held(connection).values())[: self.capacity]

    def seen(self) -> int:
        """How many experiences were offered so far."""
        with self.database.transaction() as connection:
            return sum(_counts(connection).values())

    def offer(self, keys: Sequence[str]) -> int:
        """Offer keys of learning.oracle_queries, but those it holds already; returns how many were new.

        One transaction under a lock, so concurrent offers cannot interleave. The generator is seeded by the count so
        far and the keys: an offer that is repeated after a crash draws what it drew before.

        Raises:
            LearningError: more domains than places.
        """
        with self.database.transaction() as connection:
            connection.execute(_LOCK, (self.database.tenant,))
            held = _held(connection)
            known = set(held.values())
            fresh = [key for key in dict.fromkeys(keys) if key not in known]
            domains = _domains(connection, [*known, *fresh]) if self._by_domain else {}
            slots = _grouped(list(held.values())[: self.capacity], domains)
            seen = self._seen(_counts(connection), slots)
            rng = self._rng(sum(seen.values()), fresh)
            for stratum, offered in _grouped(fresh, domains).items():
                self._take(slots, seen, stratum, offered, rng)
            self._store(connection, held, [key for stratum in sorted(slots) for key in slots[stratum]], seen)
        return len(fresh)

    def _take(
        self, slots: dict[str, list[str]], seen: dict[str, int], stratum: str, keys: list[str],
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        if self._by_domain:
            offer_by_stratum(slots, seen, stratum, keys, self.capacity, rng)
        else:
            seen[stratum] = offer(slots.setdefault(stratum, []), seen.get(stratum, 0), keys, self.capacity, rng)

    def _seen(self, counts: dict[str, int], slots: dict[str, list[str]]) -> dict[str, int]:
        """Counts by stratum as this reservoir counts, whatever it was before."""
        if not self._by_domain:
            return {"": sum(counts.values())}
        whole, held = counts.get("", 0), sum(map(len, slots.values()))
        shares = {name: round(whole * len(kept) / held) for name, kept in slots.items()} if whole else {}
        return {**shares, **{name: seen for name, seen in counts.items() if name}}

    def _rng(self, seen: int, keys: Sequence[str]) -> np.random.Generator:
        digest = hashlib.sha256("\n".join([str(self._seed), str(seen), *keys]).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def _store(self, connection: Connection, held: dict[int, str], slots: list[str], seen: dict[str, int]) -> None:
        changed = [slot for slot, key in enumerate(slots) if held.get(slot) != key]
        connection.execute("DELETE FROM learning.replay WHERE slot = ANY(%s) OR slot >= %s", (changed, len(slots)))
        tenant = self.database.tenant
        connection.cursor().executemany(_PUT, [(tenant, slot, slots[slot]) for slot in changed])
        connection.execute("DELETE FROM learning.replay_counter")  # this tenant's, by row-level security
        connection.cursor().executemany(_COUNT, [(tenant, stratum, count) for stratum, count in seen.items()])


def _held(connection: Connection) -> dict[int, str]:
    """Slot -> key; a query that was deleted leaves a gap, which storing closes."""
    return dict(connection.execute("SELECT slot, query FROM learning.replay ORDER BY slot").fetchall())


def _counts(connection: Connection) -> dict[str, int]:
    return {row[0]: int(row[1]) for row in connection.execute("SELECT stratum, seen FROM learning.replay_counter")}


def _domains(connection: Connection, keys: Sequence[str]) -> dict[str, str]:
    rows = connection.execute("SELECT key, domain FROM learning.oracle_queries WHERE key = ANY(%s)", (list(keys),))
    return dict(rows.fetchall())


def _grouped(keys: Sequence[str], domains: dict[str, str]) -> dict[str, list[str]]:
    """Keys by their stratum, in their order."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(domains.get(key, ""), []).append(key)
    return groups


_LOCK = "SELECT pg_advisory_xact_lock(hashtext('ruvllm.replay'), hashtext(%s))"
_PUT = "INSERT INTO learning.replay (tenant, slot, query) VALUES (%s, %s, %s)"
_COUNT = "INSERT INTO learning.replay_counter (tenant, stratum, seen) VALUES (%s, %s, %s)"
