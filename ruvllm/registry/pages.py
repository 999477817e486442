"""Pages beside a candidate in MLflow: an artifact of its run, and a tag on its version that names it."""

from __future__ import annotations

from ruvllm.registry.identities import PROMOTER, TRAINER
from ruvllm.registry.tracking import MODEL, mlflow_session
from ruvllm.settings import Settings


def attach(settings: Settings, run_id: str, name: str, html: str) -> None:
    """Log `html` as artifact `name` of a run; a second time replaces it.

    Raises:
        RegistryError: MLflow cannot be reached, or there is no such run.
    """
    with mlflow_session(settings, TRAINER) as client:
        client.log_text(run_id, html, name)
    with mlflow_session(settings, PROMOTER) as client:
        for version in client.search_model_versions(f"name = '{MODEL}' and run_id = '{run_id}'"):
            client.set_model_version_tag(MODEL, version.version, "report", f"runs:/{run_id}/{name}")
