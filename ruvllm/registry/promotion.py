"""Review and promotion: approve, reject, promote, roll back, reconcile. The ledger decides; MLflow's alias follows it.

Knows nothing of how a candidate was trained or of how a gateway loads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, GateError, InputError, RegistryError
from ruvllm.registry import ledger
from ruvllm.registry.fetch import fetch_bundle, read_artifact
from ruvllm.registry.gates import GateResult, Report, evaluate_gates, load_policy, require_passed
from ruvllm.registry.identities import PROMOTER, REVIEWER
from ruvllm.registry.ledger import LedgerRow, NewRow
from ruvllm.registry.package import BUNDLE, REPORT, has_comparable, how_to_approve, run_uri, with_artifact
from ruvllm.registry.tracking import MODEL, all_versions, find_version, mlflow_session
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["approve", "how_to_approve", "promote", "promote_approved", "reconcile_alias", "reject", "rollback"]

CHAMPION = "champion"
_REFUSED = "promotion_refused"
log = logging.getLogger(__name__)


def approve(settings: Settings, version: str, by: str, reason: str = "") -> None:
    """Mark a version as approved by a reviewer; it is promoted when its gates pass again.

    Raises:
        RegistryError: no such version.
    """
    _review(settings, version, "approved", by, reason)


def reject(settings: Settings, version: str, by: str, reason: str = "") -> None:
    """Mark a version as rejected; it is never promoted, unless it is approved later.

    Raises:
        RegistryError: no such version.
    """
    _review(settings, version, "rejected", by, reason)


def promote(settings: Settings, database: Database, version: str) -> LedgerRow:
    """Make an approved version champion, if its gates pass against the champion of now; the champion itself stays.

    Raises:
        GateError: it is not approved, or a gate stops it.
        BundleError: its artifact is missing or altered.
        RegistryError: no such version, it was rolled back since, or another promotion came first.
    """
    rows = _history(database)
    current = rows[-1] if rows else None
    with mlflow_session(settings, PROMOTER) as client:
        candidate = _read_candidate(client, version)
        comparable = has_comparable(client, current, candidate.tags)
    if current is not None and _is_of(candidate.version, candidate.tags, current):
        reconcile_alias(settings, database)
        return current
    _require_approved(candidate, rows)
    try:
        gates = _judge(settings, candidate, current, comparable)
    except (GateError, BundleError) as error:
        _tag(settings, version, {_REFUSED: str(error)[:500]})
        raise
    row = _append(database, candidate, gates, current)
    _project(settings, database)
    return row


def promote_approved(settings: Settings, database: Database) -> LedgerRow | None:
    """Promote the newest approved version that is not promoted yet; None where there is none.

    A version whose gates stopped it is not tried again until it is approved again.

    Raises:
        GateError, BundleError, RegistryError: see `promote`.
    """
    rows = _history(database)
    with mlflow_session(settings, PROMOTER) as client:
        waiting = [str(v.version) for v in all_versions(client) if _waits(v, rows)]
    return promote(settings, database, waiting[-1]) if waiting else None


def rollback(settings: Settings, database: Database, by: str, reason: str) -> LedgerRow:
    """Make the champion before this one champion again. Works while MLflow is away: the alias then follows later.

    Raises:
        RegistryError: there is no earlier champion, or another change came first.
    """
    _require_name(by)
    with database.transaction() as connection:
        rows = ledger.history(connection)
        standing = ledger.champions(rows)
        if len(standing) < 2:
            raise RegistryError(
                "roll back: there is no earlier champion to go back to; promote another candidate instead"
            )
        target = standing[-2]
        new = NewRow(
            "rollback", target.version, target.sha256, target.artifact_uri, by, reason, target.gates, target.cycle_id
        )
        row = ledger.append(connection, rows[-1], new)
    _project(settings, database)
    return row


def reconcile_alias(settings: Settings, database: Database) -> str | None:
    """Point MLflow's alias at the ledger's champion where it does not; the champion's version, None before the first.

    Promoters that do this at once end with the newest: each looks at the ledger again after it moved the alias.

    Raises:
        RegistryError: MLflow cannot be reached, does not know the version, or holds another router under its number.
    """
    rows = _history(database)
    if not rows:
        return None
    with mlflow_session(settings, PROMOTER) as client:
        while True:
            _point(client, rows[-1])
            seen, rows = rows, _history(database)
            if rows[-1].id == seen[-1].id:
                return rows[-1].version


def _point(client: MlflowClient, row: LedgerRow) -> None:
    """The alias at the version of `row`, which MLflow has to hold as the ledger knows it."""
    version = find_version(client, row.version)
    if not _is_of(str(version.version), version.tags, row):
        raise RegistryError(
            f"version {row.version}: bundle {version.tags.get('bundle_sha256', 'without a digest')[:12]} in MLflow, "
            f"{row.sha256[:12]} in the ledger; MLflow was wiped or replaced, and the champion goes on from the ledger: "
            "restore MLflow (ruvllm restore), or approve a new candidate"
        )
    if str(client.get_registered_model(MODEL).aliases.get(CHAMPION)) != row.version:
        client.set_registered_model_alias(MODEL, CHAMPION, row.version)


def _is_of(version: str, tags: Mapping[str, str], row: LedgerRow) -> bool:
    """Whether a version of MLflow is the router of that row; numbers begin anew where MLflow was wiped."""
    return version == row.version and tags.get("bundle_sha256") == row.sha256


@dataclass(frozen=True)
class _Candidate:
    """A version as MLflow holds it. `uri` is of its run's artifacts."""

    version: str
    uri: str
    tags: dict[str, str]

    @property
    def bundle_uri(self) -> str:
        return f"{self.uri}/{BUNDLE}"


def _review(settings: Settings, version: str, status: str, by: str, reason: str) -> None:
    _require_name(by)
    now = datetime.now(UTC).isoformat()
    verb = f"{status}_by"
    with mlflow_session(settings, REVIEWER) as client:
        find_version(client, version)
        tags = {"review_reason": reason, "reviewed_at": now, verb: by, _REFUSED: "", "validation_status": status}
        for name, value in tags.items():  # the status last: a half-written review changes nothing
            client.set_model_version_tag(MODEL, version, name, value)


def _require_name(by: str) -> None:
    if not by.strip():
        raise InputError("reviewer: got an empty name, want the name of who decides")


def _history(database: Database) -> list[LedgerRow]:
    with database.transaction() as connection:
        return ledger.history(connection)


def _read_candidate(client: MlflowClient, version: str) -> _Candidate:
    found = find_version(client, version)
    missing = {"bundle_sha256", "report_sha256", "ladder"} - set(found.tags)
    if missing:
        raise RegistryError(f"version {version}: tag {min(missing)} is missing; register candidates with ruvllm cycle")
    return _Candidate(version, run_uri(client, found), dict(found.tags))


def _require_approved(candidate: _Candidate, rows: Sequence[LedgerRow]) -> None:
    status = candidate.tags.get("validation_status", "pending")
    if status != "approved":
        raise GateError(f"version {candidate.version} is {status}, want approved: {how_to_approve(candidate.version)}")
    if not candidate.tags.get("approved_by", "").strip():
        raise GateError(
            f"version {candidate.version} is approved by nobody: set its tag approved_by to the reviewer's name"
        )
    gone = _rolled_back(candidate.version, rows)
    if gone is not None and not _reviewed_since(candidate.tags, gone.created_at):
        raise RegistryError(
            f"version {candidate.version} was rolled back by {gone.approved_by} ({gone.reason or 'no reason given'});"
            f" to promote it again, approve it again: {how_to_approve(candidate.version)}"
        )


def _rolled_back(version: str, rows: Sequence[LedgerRow]) -> LedgerRow | None:
    """The newest rollback away from a version."""
    return next((row for row in reversed(rows) if row.action == "rollback" and row.previous == version), None)


def _reviewed_since(tags: dict[str, str], moment: datetime) -> bool:
    try:
        return datetime.fromisoformat(tags.get("reviewed_at", "")) > moment
    except (ValueError, TypeError):  # absent, not a time, or one without a zone
        return False


def _waits(version: ModelVersion, rows: Sequence[LedgerRow]) -> bool:
    """Approved, not stopped by its gates, and not promoted since it was reviewed."""
    tags = version.tags
    if tags.get("validation_status") != "approved" or not tags.get("approved_by") or tags.get(_REFUSED):
        return False
    seen = [row.created_at for row in rows if str(version.version) in (row.version, row.previous)]
    return not seen or _reviewed_since(tags, max(seen))


def _judge(settings: Settings, candidate: _Candidate, current: LedgerRow | None, comparable: bool) -> list[GateResult]:
    """The gates, on the bundle and report as they lie in MLflow now, against the champion of now."""
    sha256 = candidate.tags["bundle_sha256"]
    with tempfile.TemporaryDirectory(prefix="ruvllm-promote-") as place:
        RouterRuntime.load(fetch_bundle(candidate.bundle_uri, sha256, Path(place) / BUNDLE, settings), sha256)
    report = _against(_read_report(settings, candidate), candidate, current)
    gates = evaluate_gates(with_artifact(report), load_policy(), candidate.tags["ladder"], comparable)
    require_passed(gates, candidate.version)
    return gates


def _read_report(settings: Settings, candidate: _Candidate) -> dict[str, Any]:
    content = read_artifact(f"{candidate.uri}/{REPORT}", settings)
    wanted = candidate.tags["report_sha256"]
    if (got := hashlib.sha256(content).hexdigest()) != wanted:
        raise BundleError(f"version {candidate.version}: {REPORT}: sha256 is {got}, want {wanted}; it was altered")
    report: dict[str, Any] = json.loads(content)
    return report


def _against(report: Report, candidate: _Candidate, current: LedgerRow | None) -> Report:
    """The report without its champion where that is no longer the champion: the gate is then inconclusive."""
    if candidate.tags.get("compared_with", "") == (current.version if current else ""):
        return report
    sections = {name: dict(report.get(name, {})) for name in ("policies", "paired")}
    for section in sections.values():
        section.pop(CHAMPION, None)
    return {**report, **sections}


def _append(
    database: Database, candidate: _Candidate, gates: Sequence[GateResult], current: LedgerRow | None
) -> LedgerRow:
    new = NewRow(
        action="promote",
        version=candidate.version,
        sha256=candidate.tags["bundle_sha256"],
        artifact_uri=candidate.bundle_uri,
        approved_by=candidate.tags["approved_by"],
        reason=candidate.tags.get("review_reason", ""),
        gates=[gate.as_dict() for gate in gates],
        cycle_id=candidate.tags.get("cycle_id"),
    )
    with database.transaction() as connection:
        return ledger.append(connection, current, new)


def _project(settings: Settings, database: Database) -> None:
    """Move the alias after the ledger; where MLflow is away, `reconcile_alias` does it later."""
    try:
        reconcile_alias(settings, database)
    except RegistryError as error:
        log.warning("the ledger moved, MLflow's alias not yet (reconcile will): %s", error)


def _tag(settings: Settings, version: str, tags: dict[str, str]) -> None:
    with mlflow_session(settings, PROMOTER) as client:
        for name, value in tags.items():
            client.set_model_version_tag(MODEL, version, name, value)
