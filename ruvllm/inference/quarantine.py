"""Prompts that a model's process died of; knows nothing of processes or models.

A prompt that was being worked on when the process died twice is refused for a while: a process each for every client
that sends it again would be an outage. Only its hash is kept.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ruvllm.errors import QuarantinedError
from ruvllm.inference.types import Prompt

DEATHS = 2
LIFTED_AFTER_S = 600.0
MOST = 1000  # prompts remembered; the oldest are forgotten first


@dataclass
class _Suspect:
    deaths: int = 0
    until: float = 0.0


class Quarantine:
    """Safe for threads. Seconds are `clock`'s."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self._name, self._clock, self._most = name, clock, most
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._suspects)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            QuarantinedError: the process died of just these prompts too often, and not long enough ago.
        """
        if not self._suspects:  # the usual case costs no hash
            return
        key = _key(prompts)
        with self._lock:
            suspect = self._suspects.get(key)
            left = suspect.until - self._clock() if suspect else 0.0
        if suspect and left > 0:
            raise QuarantinedError(
                f"prompt {key.hex()[:12]}: the process of model {self._name} died of it {suspect.deaths} times; it is "
                f"refused for another {left:.0f} s. Ask in other words, or restart the service to lift it"
            )

    def died(self, prompts: Sequence[Prompt]) -> None:
        """The process died while it worked on these. After a lifted quarantine, one more death is enough."""
        key = _key(prompts)
        with self._lock:
            suspect = self._suspects.setdefault(key, _Suspect())
            self._suspects.move_to_end(key)
            suspect.deaths += 1
            if suspect.deaths >= DEATHS:
                suspect.until = self._clock() + LIFTED_AFTER_S
            if len(self._suspects) > self._most:
                self._suspects.popitem(last=False)

    def answered(self, prompts: Sequence[Prompt]) -> None:
        """It was answered, so it was not the prompt."""
        if self._suspects:
            with self._lock:
                self._suspects.pop(_key(prompts), None)


def _key(prompts: Sequence[Prompt]) -> bytes:
    """Of everything the prompts say and which of it is trusted."""
    return hashlib.sha256(repr(list(prompts)).encode(errors="surrogatepass")).digest()
