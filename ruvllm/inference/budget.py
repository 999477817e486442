"""Which loaded models make room for one that is to be loaded: those used least recently, never one that works.

Knows nothing of processes: a tenant is told to leave and says whether it did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from ruvllm.errors import OverloadedError
from ruvllm.inference.machine import free_memory
from ruvllm.settings import Settings

FREE_SHARE = 0.8  # of the memory that is free at the start
_MIB = 2**20


class Tenant(Protocol):
    """A model that may be loaded."""

    @property
    def name(self) -> str: ...
    @property
    def memory(self) -> int:
        """Bytes that it takes, or would take, loaded."""
        ...

    def leave(self) -> bool:
        """Unloads it, unless it is busy or not loaded; whether it is gone by this call. Returns at once."""
        ...


class MemoryBudget:
    """Safe for threads: one model at a time makes room. Seconds are `clock`'s."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.evictions = 0
        self._clock = clock
        self._loaded: list[Tenant] = []  # used last comes last
        self._changed = threading.Condition()

    @property
    def taken(self) -> int:
        """Bytes of all loaded models."""
        return sum(tenant.memory for tenant in list(self._loaded))

    def make_room(self, tenant: Tenant, wait_s: float) -> None:
        """Counts `tenant` as loaded from now on; others are unloaded for it, and busy ones waited for.

        Raises:
            OverloadedError: it does not fit at all, or those that work did not end in `wait_s`.
        """
        if tenant.memory > self.limit:
            raise OverloadedError(
                f"model {tenant.name}: needs {tenant.memory // _MIB} MiB, the budget of all models is "
                f"{self.limit // _MIB}; raise RUVLLM_MODELS_MEMORY_MB or take a smaller quantisation"
            )
        ends = self._clock() + wait_s
        with self._changed:
            while not self._fits(tenant):
                left = ends - self._clock()
                if left <= 0 or not self._changed.wait(min(left, threading.TIMEOUT_MAX)):
                    raise OverloadedError(
                        f"model {tenant.name}: no room within {wait_s:g} s; the loaded models work and hold "
                        f"{self.taken // _MIB} of {self.limit // _MIB} MiB"
                    )
            self._forget(tenant)
            self._loaded.append(tenant)

    def _fits(self, tenant: Tenant) -> bool:
        """After as many of the others have left as are needed and can."""
        others = [other for other in self._loaded if other is not tenant]
        for other in others:
            if sum(o.memory for o in others if o in self._loaded) + tenant.memory <= self.limit:
                break
            if other.leave():
                self.evictions += 1
                self._forget(other)
        return sum(o.memory for o in self._loaded if o is not tenant) + tenant.memory <= self.limit

    def used(self, tenant: Tenant) -> None:
        """It answered, or ended its work."""
        with self._changed:
            if tenant in self._loaded:
                self._forget(tenant)
                self._loaded.append(tenant)
            self._changed.notify_all()

    def gone(self, tenant: Tenant) -> None:
        """Its process ended."""
        with self._changed:
            self._forget(tenant)
            self._changed.notify_all()

    def _forget(self, tenant: Tenant) -> None:
        self._loaded = [other for other in self._loaded if other is not tenant]


def models_memory(settings: Settings) -> int:
    """Bytes for all models at once: the setting, else a share of what is free now."""
    return settings.models_memory_mb * _MIB or int(FREE_SHARE * free_memory())
