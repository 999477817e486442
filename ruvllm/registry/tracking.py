"""A session with MLflow: local by default, quiet, without telemetry or pickle. Knows nothing of routers or gates."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ruvllm.errors import RegistryError
from ruvllm.registry.identities import ANY, Identity, identity
from ruvllm.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = "ruvllm-router"
MODEL = "ruvllm-router"

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_HARMLESS = r".*(Any type hint is inferred|An input example was not provided)"  # of MLflow's own code; of our signature
_TAG_VALUE = re.compile(r"[\w.:+-]{1,200}")


@contextmanager
def mlflow_session(settings: Settings, role: str = ANY) -> Iterator[MlflowClient]:
    """A client of the tracking server or file of `settings`, which is also mlflow's current one within the block.

    Args:
        role: who acts in it (registry/identities.py); within the block `acting` may change that.

    Raises:
        RegistryError: MLflow refused, or cannot be reached.
        SettingsError: nobody is known who acts as `role`.
    """
    with _environment(_ENVIRONMENT), acting(identity(settings, role)), warnings.catch_warnings():
        import mlflow
        from mlflow.exceptions import MlflowException

        warnings.filterwarnings("ignore", message=_HARMLESS, category=UserWarning)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        if not settings.mlflow_tracking_uri:
            (settings.state_dir / "mlflow").mkdir(parents=True, exist_ok=True)
        try:
            mlflow.set_tracking_uri(settings.tracking_uri)
            yield mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
        except MlflowException as error:
            raise RegistryError(f"MLflow at {shown(settings)}: {error}") from error


@contextmanager
def acting(who: Identity | None) -> Iterator[None]:
    """Every call to MLflow within the block is made by `who`; None changes nothing."""
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    with _environment(dict(zip(names, (who.username, who.password), strict=True)) if who else {}):
        yield


def shown(settings: Settings) -> str:
    """The tracking URI without a password."""
    return re.sub(r"//[^/@]*@", "//***@", settings.tracking_uri)


def experiment_id(client: MlflowClient, settings: Settings) -> str:
    """The experiment's id; it is made where it is not there. Local artifacts lie under the state directory."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    local = None if settings.mlflow_tracking_uri else (settings.state_dir / "mlflow" / "artifacts").as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=local))


def find_version(client: MlflowClient, version: str) -> ModelVersion:
    """A version of the registered router.

    Raises:
        RegistryError: there is none of that number.
    """
    known = {str(v.version): v for v in all_versions(client)}
    if version not in known:
        raise RegistryError(f"version {version!r}: not in MLflow; want one of {', '.join(known) or 'none yet'}")
    return known[version]


def all_versions(client: MlflowClient) -> list[ModelVersion]:
    """Every version of the router, the oldest first."""
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{MODEL}'", page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def tag_filter(**tags: str) -> str:
    """An MLflow filter on tags; a value that would need quoting is refused.

    Raises:
        RegistryError: a value has other than letters, digits and . : + - _.
    """
    for name, value in tags.items():
        if not _TAG_VALUE.fullmatch(value):
            raise RegistryError(f"tag {name}: got {value!r}, want letters, digits and . : + - _, at most 200")
    return " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """MLflow reads its options from the environment, some of them only when it is imported."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
