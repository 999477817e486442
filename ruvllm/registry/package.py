"""Packaging: a candidate's bundle, report and gate table go to MLflow, pending a reviewer. Promotes nothing.

Keyed by cycle and bundle: a night that was killed anywhere in here and is resumed registers the candidate once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ruvllm.database.pool import Database
from ruvllm.errors import ArtifactError
from ruvllm.evaluation.table import report_markdown
from ruvllm.registry import ledger
from ruvllm.registry.gates import GateResult, Report, evaluate_gates, load_policy, table_markdown
from ruvllm.registry.identities import PROMOTER, TRAINER, identity
from ruvllm.registry.ledger import LedgerRow
from ruvllm.registry.tracking import MODEL, acting, all_versions, experiment_id, mlflow_session, tag_filter
from ruvllm.router.layout import N_FEATURES
from ruvllm.router.manifest import Manifest
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

BUNDLE = "bundle"  # the artifact folder of a run that is promoted
REPORT = "report.json"
CANDIDATE = "candidate"
FITS = ("ladder", "encoder_id", "layout_hash")  # routers that differ in one of these cannot answer the same questions
_MOMENTS = 200  # of the machine, kept on a run; MLflow takes 1000 figures in a batch
_DESCRIPTION = 5000  # characters that MLflow's column holds
_MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")


class Moment(Protocol):
    """A sample of the machine: figures by their name in MLflow."""

    @property
    def timestamp_ms(self) -> int: ...

    @property
    def figures(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Registered:
    """A candidate in the registry. `artifact_uri` is the bundle folder's, `sha256` of its manifest.json."""

    version: str
    run_id: str
    artifact_uri: str
    sha256: str
    gates: tuple[GateResult, ...]


@dataclass(frozen=True)
class _Candidate:
    bundle: Path
    manifest: Manifest
    sha256: str
    report: bytes
    cycle_id: str
    champion: str  # the version it was compared with, '' before the first promotion
    params: Mapping[str, Any]
    gates: tuple[GateResult, ...]
    machine: tuple[Moment, ...] = ()

    @property
    def tags(self) -> dict[str, str]:
        return {
            "cycle_id": self.cycle_id,
            "bundle_sha256": self.sha256,
            "report_sha256": hashlib.sha256(self.report).hexdigest(),
            **{name: str(getattr(self.manifest, name)) for name in FITS},
            "router_version": self.manifest.version,
            "compared_with": self.champion,
        }


def register_candidate(
    settings: Settings,
    database: Database,
    bundle: Path,
    report: Report,
    cycle_id: str,
    params: Mapping[str, Any] | None = None,
    machine: Sequence[Moment] = (),
) -> Registered:
    """Log the bundle folder and its report, register them as a version, alias it `candidate`, tag it pending.

    Args:
        params: of the run; floats are figures and become metrics.
        machine: what the machine did while the candidate was trained; the run's system metrics.

    Raises:
        BundleError: the folder is not a whole bundle.
        ArtifactError: an artifact cannot be written, as on a full disk; no version was registered.
        RegistryError: MLflow refused or cannot be reached.
    """
    with database.transaction() as connection:
        champion = ledger.current(connection)
    runtime = RouterRuntime.load(bundle)  # files, layout and golden vectors
    with mlflow_session(settings, PROMOTER) as client:
        candidate = _candidate(client, bundle, runtime, report, cycle_id, params or {}, champion)
        candidate = replace(candidate, machine=tuple(machine))
        version = _version_of(client, candidate) or _new_version(client, settings, candidate)
        _describe(client, version, candidate)
        uri = bundle_uri(client, version)
    return Registered(str(version.version), str(version.run_id), uri, candidate.sha256, candidate.gates)


def with_artifact(report: Report) -> dict[str, Any]:
    """The report with the figure of the gate `bundle verifies`, for a bundle that was just verified."""
    return {**report, "artifact": {"verified": 1.0}}


def bundle_uri(client: MlflowClient, version: ModelVersion) -> str:
    """Where the bundle of a version lies; file: or mlflow-artifacts:."""
    return f"{run_uri(client, version)}/{BUNDLE}"


def run_uri(client: MlflowClient, version: ModelVersion) -> str:
    return str(client.get_run(str(version.run_id)).info.artifact_uri).rstrip("/")


def how_to_approve(version: str) -> str:
    """What a reviewer does with a pending version."""
    return (
        f'"ruvllm registry approve {version} --by NAME", or in MLflow set the tags validation_status=approved and '
        f"approved_by=NAME on version {version} of {MODEL}"
    )


def has_comparable(client: MlflowClient, champion: LedgerRow | None, fits: Mapping[str, str]) -> bool:
    """Whether there is a champion of the candidate's ladder, encoder and layout.

    One that MLflow does not know (it was wiped) counts as comparable: without its figures the gate is inconclusive.
    """
    if champion is None:
        return False
    tags = {str(version.version): version.tags for version in all_versions(client)}.get(champion.version, {})
    if tags.get("bundle_sha256") != champion.sha256:
        return True
    return all(tags.get(name) == fits.get(name) for name in FITS)


def _candidate(
    client: MlflowClient,
    bundle: Path,
    runtime: RouterRuntime,
    report: Report,
    cycle_id: str,
    params: Mapping[str, Any],
    champion: LedgerRow | None,
) -> _Candidate:
    comparable = has_comparable(client, champion, {name: getattr(runtime.manifest, name) for name in FITS})
    gates = evaluate_gates(with_artifact(report), load_policy(), runtime.ladder, comparable)
    return _Candidate(
        bundle=bundle,
        manifest=runtime.manifest,
        sha256=runtime.sha256,
        report=json.dumps(report, indent=2, sort_keys=True).encode(),
        cycle_id=cycle_id,
        champion=champion.version if champion else "",
        params=params,
        gates=tuple(gates),
    )


def _version_of(client: MlflowClient, candidate: _Candidate) -> ModelVersion | None:
    """The version that an earlier run of this night registered."""
    wanted = tag_filter(cycle_id=candidate.cycle_id, bundle_sha256=candidate.sha256)
    found = client.search_model_versions(f"name = '{MODEL}' and {wanted}")
    return found[0] if found else None


def _new_version(client: MlflowClient, settings: Settings, candidate: _Candidate) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    # runs and artifacts are the trainer's, versions the promoter's
    with acting(identity(settings, TRAINER)), _writing(candidate.cycle_id):
        run_id = _run(client, experiment_id(client, settings), candidate)
        _log_figures(client, run_id, candidate)
        source, model_id = _log_model(run_id, candidate)
    try:
        client.create_registered_model(
            MODEL, description="The router of RuvLLM; mlflow/reviewers.md says how to review."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {**candidate.tags, "validation_status": "pending"}
    version = client.create_model_version(MODEL, source, run_id=run_id, tags=tags, model_id=model_id)
    with acting(identity(settings, TRAINER)):
        client.set_terminated(run_id)
    return version


@contextmanager
def _writing(cycle_id: str) -> Iterator[None]:
    """MLflow hands a full disk on as it comes."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"artifacts of {cycle_id}: not written ({error}); free some space where MLflow keeps them and run the "
            "night again, it goes on here"
        ) from error


def _run(client: MlflowClient, experiment: str, candidate: _Candidate) -> str:
    """The run that an earlier attempt left behind, or a new one."""
    wanted = tag_filter(cycle_id=candidate.cycle_id, bundle_sha256=candidate.sha256)
    found = client.search_runs([experiment], wanted, max_results=1)
    if found:
        return str(found[0].info.run_id)
    return str(client.create_run(experiment, run_name=candidate.cycle_id, tags=candidate.tags).info.run_id)


def _log_figures(client: MlflowClient, run_id: str, candidate: _Candidate) -> None:
    from mlflow.entities import Dataset, DatasetInput, Metric, Param

    manifest = candidate.manifest
    params = {
        "ladder": manifest.ladder,
        "variant": manifest.variant,
        "hidden": manifest.hidden,
        "encoder_id": manifest.encoder_id,
        "layout_hash": manifest.layout_hash,
        "snapshot": manifest.snapshot,
        **candidate.params,
    }
    measured = [(name, value) for name, value in params.items() if isinstance(value, float)]  # compared and drawn
    metrics = [Metric(name, value, 0, 0) for name, value in (*measured, *_flat(json.loads(candidate.report)))]
    given = [Param(name, str(value)[:500]) for name, value in params.items() if not isinstance(value, float)]
    client.log_batch(run_id, metrics[:1000], given)
    _log_machine(client, run_id, candidate.machine)
    digest = manifest.snapshot[:36]  # MLflow's column holds so many; the param has all of it
    if digest:
        dataset = Dataset(name="snapshot", digest=digest, source_type="postgres", source="learning.snapshots")
        client.log_inputs(run_id, [DatasetInput(dataset)])
    client.log_text(run_id, candidate.report.decode(), REPORT)
    client.log_text(run_id, json.dumps([gate.as_dict() for gate in candidate.gates], indent=2), "gates.json")
    client.log_text(run_id, table_markdown(candidate.gates), "gates.md")
    client.log_artifacts(run_id, str(candidate.bundle), BUNDLE)


def _log_machine(client: MlflowClient, run_id: str, machine: Sequence[Moment]) -> None:
    """As system metrics, thinned out to what one batch holds; a resumed night writes the same values again."""
    from mlflow.entities import Metric

    kept = machine[:: 1 + len(machine) // _MOMENTS]
    figures = [
        Metric(name, value, moment.timestamp_ms, step)
        for step, moment in enumerate(kept)
        for name, value in moment.figures.items()
    ]
    if figures:
        client.log_batch(run_id, figures)


def _log_model(run_id: str, candidate: _Candidate) -> tuple[str, str | None]:
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    features = TensorSpec(np.dtype("float32"), (-1, N_FEATURES))
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="router",
            python_model=str(_MODEL_CODE),
            artifacts={BUNDLE: str(candidate.bundle)},
            pip_requirements=[],  # ruvllm itself; asking pip would start a subprocess
            signature=ModelSignature(inputs=Schema([features])),
        )
    return info.model_uri, info.model_id


def _describe(client: MlflowClient, version: ModelVersion, candidate: _Candidate) -> None:
    """Description and alias; both can be set again, so a resumed night ends with them in place."""
    client.update_model_version(MODEL, version.version, _description(candidate, str(version.version)))
    newest = max(int(v.version) for v in client.search_model_versions(f"name = '{MODEL}'", max_results=1,
                                                                      order_by=["version_number DESC"]))  # fmt: skip
    if newest == int(version.version):
        client.set_registered_model_alias(MODEL, CANDIDATE, version.version)


def _description(candidate: _Candidate, version: str) -> str:
    """What a reviewer decides by: gates, what stops it, how to approve and to go back, and the other policies."""
    stops = [gate.name for gate in candidate.gates if gate.stops]
    text = (
        f"Router `{candidate.manifest.version}` of cycle {candidate.cycle_id}, ladder {candidate.manifest.ladder}, "
        f"compared with {f'version {candidate.champion}' if candidate.champion else 'no champion'}; bundle "
        f"`{candidate.sha256}`. The night's page is `night.html` among the run's artifacts (tag `report`).\n\n"
        f"{table_markdown(candidate.gates)}\n\n"
        f"{'Stopped by: ' + ', '.join(stops) + '.' if stops else 'No gate stops it.'}\n\n"
        f"To approve: {how_to_approve(version)}. Gates are evaluated again at promotion.\n\n"
        'To go back after a promotion: "ruvllm registry rollback --by NAME --reason WHY".\n\n'
    )
    beside = report_markdown(json.loads(candidate.report))
    return text + beside if len(text) + len(beside) <= _DESCRIPTION else text[:_DESCRIPTION]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number of the report with its path, as MLflow names metrics: `policies/fastgrnn/utility`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        yield path, float(value)
