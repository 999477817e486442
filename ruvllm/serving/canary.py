"""A candidate beside the champion: it decides and is logged (share 0: shadow), or answers a share of requests (canary).

Knows nothing of HTTP. A unit (a session, else a request) is always on the same side, by a hash. A canary that is surely
worse than the tolerance (ruvllm/serving/arms.py) is stopped for good, by a row that every gateway sees. The gateway
asks `trial` once per request; one thread calls `refresh`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, InputError, RegistryError
from ruvllm.inference.tiers import Ladder
from ruvllm.router.decision import Decision
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.serving.arms import Arm, Sample, Tolerance, worse
from ruvllm.serving.champion import Use, obtain
from ruvllm.settings import Settings

log = logging.getLogger(__name__)

CHAMPION, CANDIDATE = "champion", "candidate"
_KEPT = 1000  # shadow decisions between two refreshes; beyond it they are counted and dropped


@dataclass(frozen=True)
class Trial:
    """A row of serving.trials."""

    id: int
    version: str  # the registry's
    sha256: str
    artifact_uri: str
    share: float  # of the traffic in [0, 1]; 0: shadow
    tolerance: Tolerance
    started_at: datetime

    def serves(self, unit: str) -> bool:
        """Whether the candidate answers `unit`; the same for all gateways and for ever."""
        digest = hashlib.sha256(f"{self.id}:{unit}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


@dataclass(frozen=True)
class LiveTrial:
    """A trial with its router in memory."""

    trial: Trial
    runtime: RouterRuntime

    def serves(self, unit: str) -> bool:
        return self.trial.serves(unit)


@dataclass(frozen=True)
class _Shadow:
    trial: int
    tenant: str
    request_id: str
    tier: str
    decision: Decision

    def values(self) -> dict[str, object]:
        made = self.decision
        return {
            "trial": self.trial, "tenant": self.tenant, "request_id": self.request_id, "tier": self.tier,
            "context_bin": made.context_bin, "confidence": made.confidence, "propensity": made.propensity,
        }  # fmt: skip


class _Seen:
    """What was measured in this process since the trial began: log seconds and failures of one arm."""

    def __init__(self) -> None:
        self.log_seconds, self.failed, self.n = Sample(), 0, 0

    def note(self, seconds: float, error: bool) -> None:
        self.n += 1
        self.failed += error
        if not error:
            self.log_seconds = self.log_seconds.joined(Sample(1, math.log(max(seconds, 1e-6))))

    def arm(self, quality: Sample) -> Arm:
        return Arm(quality, self.log_seconds, Sample.of_events(self.failed, self.n))


class Candidates:
    """The trial of one gateway. `check` raises BundleError where a router does not fit this ladder and encoder."""

    def __init__(self, store: BundleStore, settings: Settings, ladder: Ladder, check: Use) -> None:
        self._store, self._settings, self._ladder, self._check = store, settings, ladder, check
        self._lock = threading.Lock()
        self._arms = {CHAMPION: _Seen(), CANDIDATE: _Seen()}
        self._shadows: deque[_Shadow] = deque()
        self._over: tuple[int, str] | None = None  # a trial that was stopped here, its row perhaps not yet
        self.trial: LiveTrial | None = None
        self.stopped: str | None = None  # why the last one was
        self.trouble: str | None = None
        self.dropped = 0  # shadow decisions that were not kept

    def note(self, arm: str, seconds: float, error: bool) -> None:
        """An answer of CHAMPION or CANDIDATE took `seconds`, or failed; counted only while a trial is on."""
        if self.trial is not None:
            with self._lock:
                self._arms[arm].note(seconds, error)

    def note_shadow(self, request_id: str, tenant: str, decision: Decision) -> None:
        """What the candidate would have decided. Kept in memory until the next refresh."""
        trial = self.trial
        if trial is None:
            return
        tier = self._ladder.tiers[decision.tier].name
        with self._lock:
            if len(self._shadows) >= _KEPT:
                self.dropped += 1
                return
            self._shadows.append(_Shadow(trial.trial.id, tenant, request_id, tier, decision))

    def refresh(self, database: Database, champion: str, tenants: Sequence[str] = ()) -> None:
        """Follow serving.trials, write shadow decisions, stop a candidate that is worse.

        Args:
            champion: version of the router that decides, as interactions name it.
            tenants: whose answers count, beside those of `database`.

        Raises:
            DatabaseError: Postgres is away; the trial goes on.
        """
        self._write_shadows(database)
        found = newest(database)
        if self.trial is None or found != self.trial.trial:
            self._begin(database, found)
        if self.trial is not None:
            self._judge(database, self.trial, champion, (database.tenant, *tenants))

    def _begin(self, database: Database, found: Trial | None) -> None:
        self.trial = None
        if found is None:
            return
        if self._over is not None and self._over[0] == found.id:  # Postgres went away before it was told
            self._stop(database, found, self._over[1])
            return
        try:
            runtime = obtain(self._store, found.sha256, found.artifact_uri, self._settings)
            self._check(runtime)
        except RegistryError as error:  # tried again at the next refresh
            self.trouble = str(error)
        except BundleError as error:
            self._stop(database, found, f"not usable: {error}")
        else:
            self._start(found, runtime)

    def _start(self, found: Trial, runtime: RouterRuntime) -> None:
        with self._lock:
            self._arms = {CHAMPION: _Seen(), CANDIDATE: _Seen()}
        self.trouble = self.stopped = None
        self.trial = LiveTrial(found, runtime)
        log.info("candidate %s on trial, share %g", runtime.version, found.share)

    def _judge(self, database: Database, live: LiveTrial, champion: str, tenants: Sequence[str]) -> None:
        if live.runtime.version == champion:
            self._stop(database, live.trial, "it became the champion")
            return
        if live.trial.share == 0:
            return
        held, tried = (
            _quality(database, name, live.trial.started_at, tenants) for name in (champion, live.runtime.version)
        )
        with self._lock:
            arms = self._arms[CHAMPION].arm(held), self._arms[CANDIDATE].arm(tried)
        if (why := worse(*arms, live.trial.tolerance)) is not None:
            self._stop(database, live.trial, why)

    def _stop(self, database: Database, trial: Trial, why: str) -> None:
        self.trial, self.stopped, self._over = None, why, (trial.id, why)
        stop(database, trial.id, why)
        log.warning("candidate of version %s stopped: %s", trial.version, why)

    def _write_shadows(self, database: Database) -> None:
        with self._lock:
            waiting, self._shadows = list(self._shadows), deque()
        for tenant in dict.fromkeys(each.tenant for each in waiting):
            rows = [each.values() for each in waiting if each.tenant == tenant]
            with database.transaction(tenant) as connection:
                connection.cursor().executemany(_SHADOW, rows)


def start(
    database: Database, version: str, sha256: str, artifact_uri: str, share: float, tolerance: Tolerance | None = None
) -> int:
    """Put a candidate on trial, in place of the one before; its id.

    Raises:
        InputError: the share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise InputError(f"share of a trial: got {share}, want 0 (shadow) to 1")
    values = {
        "tenant": database.tenant, "version": version, "sha256": sha256, "uri": artifact_uri, "share": share,
        "tolerance": json.dumps(asdict(tolerance or Tolerance())),
    }  # fmt: skip
    with database.transaction() as connection:
        connection.execute(_STOP_ALL, {"why": f"version {version} took its place"})
        row = connection.execute(_START, values).fetchone()
    assert row is not None  # INSERT … RETURNING
    return int(row[0])


def stop(database: Database, trial: int, why: str) -> bool:
    """End a trial for good; False where it was over already."""
    with database.transaction() as connection:
        return connection.execute(_STOP, {"id": trial, "why": why[:1000]}).rowcount > 0


def newest(database: Database) -> Trial | None:
    """The trial that is on."""
    with database.transaction() as connection:
        row = connection.cursor(row_factory=dict_row).execute(_NEWEST).fetchone()
    return None if row is None else _trial(row)


def agreement(database: Database, trial: int) -> tuple[int, int]:
    """Of a shadow's decisions: how many there are, and in how many the champion chose the same tier and bin."""
    with database.transaction() as connection:
        row = connection.execute(_AGREEMENT, {"trial": trial}).fetchone()
    assert row is not None  # an aggregate
    return int(row[0]), int(row[1])


def _trial(row: dict[str, Any]) -> Trial:
    tolerance = Tolerance(**row.pop("bounds"))
    return Trial(**row, tolerance=tolerance)


def _quality(database: Database, version: str, since: datetime, tenants: Sequence[str]) -> Sample:
    """Of the answers that this version decided since then."""
    joined = Sample()
    for tenant in dict.fromkeys(tenants):
        with database.transaction(tenant) as connection:
            row = connection.execute(_QUALITY, {"version": version, "since": since}).fetchone()
        if row is not None and row[0]:
            joined = joined.joined(Sample(int(row[0]), float(row[1]), float(row[2])))
    return joined


_COLUMNS = "id, version, sha256, artifact_uri, share, bounds, started_at"
_NEWEST = f"SELECT {_COLUMNS} FROM serving.trials WHERE stopped_at IS NULL ORDER BY id DESC LIMIT 1"  # noqa: S608
_START = """
    INSERT INTO serving.trials (tenant, version, sha256, artifact_uri, share, bounds)
    VALUES (%(tenant)s, %(version)s, %(sha256)s, %(uri)s, %(share)s, %(tolerance)s) RETURNING id
"""
_STOP = "UPDATE serving.trials SET stopped_at = now(), stop_reason = %(why)s WHERE id = %(id)s AND stopped_at IS NULL"
_STOP_ALL = "UPDATE serving.trials SET stopped_at = now(), stop_reason = %(why)s WHERE stopped_at IS NULL"
_SHADOW = """
    INSERT INTO serving.shadow_decisions (trial, tenant, request_id, tier, context_bin, confidence, propensity)
    VALUES (%(trial)s, %(tenant)s, %(request_id)s, %(tier)s, %(context_bin)s, %(confidence)s, %(propensity)s)
    ON CONFLICT DO NOTHING
"""
_QUALITY = """
    SELECT count(*), avg(quality), var_pop(quality) FROM serving.interactions
    WHERE router_version = %(version)s AND asked_at >= %(since)s AND quality IS NOT NULL AND decided_by <> 'cache'
"""
_AGREEMENT = """
    SELECT count(*), count(*) FILTER (WHERE s.tier = i.tier AND s.context_bin = i.context_bin)
    FROM serving.shadow_decisions s JOIN serving.interactions i ON i.request_id = s.request_id AND i.tenant = s.tenant
    WHERE s.trial = %(trial)s AND i.decided_by <> 'cache'
"""
