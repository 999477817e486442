"""What one gateway holds per tenant, opened when it is first asked for, bounded. Knows nothing of what that is.

Tenants share the connections to Postgres, never a transaction: each of theirs begins with its own tenant, and row-level
security shows it no other's rows.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from ruvllm.database.pool import Database

T = TypeVar("T")
MOST = 64  # tenants that are held at once, beside the gateway's own


def tenant_database(database: Database, tenant: str) -> Database:
    """`database` for another tenant: the same connections, and the bound on them, under other row-level security.

    It is not to be closed: its connections are those of `database`.
    """
    if tenant == database.tenant:
        return database
    shared = copy.copy(database)
    shared.tenant = tenant
    return shared


class Tenants(Generic[T]):
    """`own` is always held, as `first`; of the others the `limit` that were asked for last. `make` may take its time
    and may fail: then nothing is held, and the next who asks tries again.
    """

    def __init__(self, own: str, first: T, make: Callable[[str], T], limit: int = MOST) -> None:
        self._own, self._first, self._make, self._limit = own, first, make, limit
        self._others: OrderedDict[str, T] = OrderedDict()
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def of(self, tenant: str) -> T:
        """What is held for `tenant`; made by one caller, and the others of that tenant wait for it.

        Raises:
            DatabaseError: `make` could not read what it needs.
        """
        if tenant == self._own:
            return self._first
        with self._lock:
            if (found := self._held(tenant)) is not None:
                return found
            making = self._making.setdefault(tenant, threading.Lock())
        with making:
            return self._made(tenant)

    @property
    def opened(self) -> tuple[T, ...]:
        """Everything that is held now, the gateway's own first."""
        with self._lock:
            return (self._first, *self._others.values())

    def _held(self, tenant: str) -> T | None:
        found = self._others.get(tenant)
        if found is not None:
            self._others.move_to_end(tenant)
        return found

    def _made(self, tenant: str) -> T:
        with self._lock:
            if (found := self._held(tenant)) is not None:  # who held the lock before made it
                return found
        made = self._make(tenant)
        with self._lock:
            self._others[tenant] = made
            self._making.pop(tenant, None)
            while len(self._others) > self._limit:
                self._others.popitem(last=False)
        return made
