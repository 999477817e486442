"""What one may know of a tier's process without asking it: for readiness, metrics and the doctor. Frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from ruvllm.inference.snapshots import Counts


@dataclass(frozen=True)
class TierState:
    """`state`: cold | loading | ready | failing | closed."""

    name: str
    state: str
    detail: str
    busy: int
    resident_mb: int
    restarts: int  # after deaths
    recycled: int  # because it was worn
    evicted: int  # to make room for another
    quarantined: int  # prompts that are suspected
    snapshots: Counts | None = None  # of the process that is loaded; None: none is, or a server answers

    @property
    def ready(self) -> bool:
        """Loaded, and answering as far as one knows."""
        return self.state == "ready"
