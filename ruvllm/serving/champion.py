"""The promoted router, hot: the ledger's champion decides within seconds of its promotion, and a bad one never does.

Knows nothing of HTTP or of how an answer is made. In this order: fetched and hashed, parsed, golden vectors, fits this
ladder, decides, and only then the local cache points to it. So whatever is wrong with an artifact, in memory and on
disk the last good one stays, and a start without Postgres and registry has it.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, RegistryError
from ruvllm.registry import ledger
from ruvllm.registry.fetch import KEEP, fetch_bundle
from ruvllm.registry.ledger import LedgerRow
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.settings import Settings

log = logging.getLogger(__name__)

_AGAIN_S = 30.0  # until a champion that was refused is looked at again: its artifact may have been restored
Use = Callable[[RouterRuntime], None]


class HotRouter:
    """Follows the ledger for one gateway. One thread calls `load_cached` and then `reconcile`, any may ask the rest."""

    def __init__(
        self, store: BundleStore, settings: Settings, use: Use, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`use` makes a router decide; where it raises BundleError, nothing may have changed. `clock` is in seconds."""
        self._store, self._settings, self._use, self._clock = store, settings, use, clock
        self._read_at = clock()
        self._refused: tuple[int, float] | None = None  # the ledger's row, and when it was refused
        self.sha256 = ""  # of what decides; '' before the first
        self.version = ""
        self.trouble: str | None = None  # why the champion does not decide, or is not kept

    @property
    def stale_s(self) -> float:
        """Seconds since the ledger was last read, or since the start."""
        return self._clock() - self._read_at

    def load_cached(self) -> bool:
        """Let the cache's champion decide or, where it is damaged, the newest sound one before it."""
        try:
            current = self._store.current()
        except BundleError as error:
            self._note(error)
            return self._load_older()
        return current is not None and self._decides(current.path, current.sha256)

    def reconcile(self, database: Database) -> bool:
        """Look at the ledger once and follow it; whether another router decides now.

        Raises:
            DatabaseError: the ledger cannot be read; what decides goes on.
        """
        with database.transaction() as connection:
            row = ledger.current(connection)
        self._read_at = self._clock()
        if row is None or self._was_refused(row):
            return False
        try:
            return self._follow(row)
        except (BundleError, RegistryError, OSError) as error:
            self._note(error)
            if isinstance(error, BundleError):
                self._refused = (row.id, self._clock())
            return False

    def _follow(self, row: LedgerRow) -> bool:
        new = row.sha256 != self.sha256
        if new:
            runtime = obtain(self._store, row.sha256, row.artifact_uri, self._settings)
            self._use(runtime)
            self._now(runtime, row.sha256)
        self._keep(row)
        self.trouble = self._refused = None
        return new

    def _keep(self, row: LedgerRow) -> None:
        current = self._current()
        if current != (row.sha256, row.version):
            self._store.activate(row.sha256, row.version)
            self._store.prune(KEEP)

    def _current(self) -> tuple[str, str] | None:
        try:
            current = self._store.current()
        except BundleError:  # it is written anew
            return None
        return (current.sha256, current.version) if current else None

    def _was_refused(self, row: LedgerRow) -> bool:
        return self._refused is not None and self._refused[0] == row.id and self._clock() - self._refused[1] < _AGAIN_S

    def _load_older(self) -> bool:
        return any(self._decides(path, path.name) for path in self._store.recent())

    def _decides(self, path: Path, sha256: str) -> bool:
        try:
            runtime = RouterRuntime.load(path, sha256)
            self._use(runtime)
        except BundleError as error:
            self._note(error)
            return False
        self._now(runtime, sha256)
        return True

    def _now(self, runtime: RouterRuntime, sha256: str) -> None:
        self.sha256, self.version = sha256, runtime.version
        log.info("router %s decides (%s)", runtime.version, sha256[:12])

    def _note(self, error: Exception) -> None:
        if self.trouble != str(error):
            log.warning("router: %s", error)
        self.trouble = str(error)


def obtain(store: BundleStore, sha256: str, uri: str, settings: Settings) -> RouterRuntime:
    """The bundle of that digest, from `store` or else fetched from `uri` into it; its golden vectors come out.

    Raises:
        BundleError: it is missing, altered, or not what was trained; then it is not installed either.
        RegistryError: the registry cannot be reached.
    """
    try:
        return RouterRuntime.load(store.root / sha256, sha256)
    except BundleError:  # not here, or damaged here
        pass
    with tempfile.TemporaryDirectory(prefix="ruvllm-bundle-") as place:
        folder = fetch_bundle(uri, sha256, Path(place) / "bundle", settings)
        RouterRuntime.load(folder, sha256)  # checked before anything is kept
        return RouterRuntime.load(store.install(folder, sha256), sha256)
