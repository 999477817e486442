"""Many promoters at once, each sure of the same champion: who wins a round."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from ruvllm.database.pool import Database
from ruvllm.errors import RegistryError
from ruvllm.registry import ledger
from ruvllm.registry.ledger import NewRow

PROMOTERS = 16


def race(database: Database, number: int) -> list[str]:
    """The versions whose promoter was told that it won; all began from the champion of the round before."""
    with database.transaction() as connection:
        champion = ledger.current(connection)
    together = threading.Barrier(PROMOTERS)

    def promote(promoter: int) -> str:
        version = str(1 + number * PROMOTERS + promoter)
        together.wait(timeout=60)
        try:
            with database.transaction() as connection:
                row = NewRow("promote", version, "0" * 64, "file:///nowhere", f"promoter {promoter}")
                return ledger.append(connection, champion, row).version
        except RegistryError:
            return ""

    with ThreadPoolExecutor(PROMOTERS) as threads:
        return [version for version in threads.map(promote, range(PROMOTERS)) if version]
