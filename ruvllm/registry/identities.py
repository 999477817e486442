"""Who may do what in MLflow, with its basic-auth app: three identities, their grants, and where their passwords are.

    trainer     makes runs and logs to them; registers nothing, tags nothing, moves nothing
    promoter    registers versions, edits their tags, moves aliases
    reviewer    edits tags, and with them approves; MLflow has no right of its own for aliases, so a reviewer could move
                one: the ledger decides what serves, and `reconcile_alias` puts the alias back

Passwords are in one TOML file (RUVLLM_MLFLOW_IDENTITIES_FILE): a table by role with `username` and `password`. A
process needs those of the roles that it acts in. Without a file MLflow is asked without a name, or with the tracking
URI's.
"""

from __future__ import annotations

import os
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from ruvllm.errors import RegistryError, SettingsError
from ruvllm.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAINER, PROMOTER, REVIEWER = "trainer", "promoter", "reviewer"
_TIMEOUT_S = 30.0
_TAKEN = "RESOURCE_ALREADY_EXISTS"
ANY = "any"  # whoever is in the file: for reading
GRANTS: Mapping[str, tuple[str, ...]] = {  # what each may edit; everything may be read
    TRAINER: ("experiment",),
    PROMOTER: ("experiment", "registered_model"),
    REVIEWER: ("registered_model",),
}


@dataclass(frozen=True)
class Identity:
    username: str
    password: str


def identity(settings: Settings, role: str) -> Identity | None:
    """Who acts as `role`; None where no file is set.

    Raises:
        SettingsError: the file cannot be read, or does not hold the role.
    """
    if not settings.mlflow_identities_file:
        return None
    known = read_identities(Path(settings.mlflow_identities_file))
    found = next(iter(known.values()), None) if role == ANY else known.get(role)
    if found is None:
        raise SettingsError(
            f"RUVLLM_MLFLOW_IDENTITIES_FILE: {settings.mlflow_identities_file} holds {', '.join(known) or 'nobody'}, "
            f"want [{role}]; what is done here is done as the {role}"
        )
    return found


def read_identities(path: Path) -> dict[str, Identity]:
    """The identities in a file, by role.

    Raises:
        SettingsError: it is not there, or holds something else.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {role: Identity(str(t["username"]), str(t["password"])) for role, t in tables.items()}
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise SettingsError(f"identities {path}: {error}; want a table a role, with username and password") from error


def make_identities(settings: Settings, admin: Identity, into: Path) -> list[str]:
    """Make the three users, their rights, the experiment and the model they are rights on; the roles.

    Run once by an operator. A second run keeps the passwords in `into` and sets everything as it should be again.

    Raises:
        RegistryError: MLflow cannot be reached or refuses the administrator.
        SettingsError: `into` holds something else, or cannot be written.
    """
    from ruvllm.registry.tracking import EXPERIMENT, MODEL, acting, mlflow_session

    known = read_identities(into) if into.exists() else {}
    people = {role: known.get(role) or Identity(f"ruvllm-{role}", secrets.token_urlsafe(24)) for role in GRANTS}
    with mlflow_session(settings) as client, acting(admin):
        resources = {"experiment": _experiment(client, EXPERIMENT), "registered_model": _model(client, MODEL)}
    login = (admin.username, admin.password)
    with httpx.Client(base_url=settings.tracking_uri, auth=login, timeout=_TIMEOUT_S, trust_env=False) as server:
        for role, person in people.items():
            _make_user(server, person)
            for kind in GRANTS[role]:
                _grant(server, {"username": person.username, "resource_type": kind, "resource_id": resources[kind]})
    if people != known:  # else the file may well be one that cannot be written, as a mounted secret
        _write(into, people)
    return list(people)


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _model(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="The router of RuvLLM; mlflow/reviewers.md: how to review.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return name


def _make_user(server: httpx.Client, person: Identity) -> None:
    """Make the user, or give it this password where it is there."""
    body = {"username": person.username, "password": person.password}
    if _ask(server, "POST", "/api/2.0/mlflow/users/create", body, taken=True) == _TAKEN:
        _ask(server, "PATCH", "/api/2.0/mlflow/users/update-password", body)


def _grant(server: httpx.Client, on: dict[str, str]) -> None:
    """The right to edit; one that is there is taken back first, for it may be another one."""
    grant, path = {**on, "permission": "EDIT"}, "/api/3.0/mlflow/users/permissions"
    if _ask(server, "POST", f"{path}/grant", grant, taken=True) == _TAKEN:
        _ask(server, "POST", f"{path}/revoke", on)
        _ask(server, "POST", f"{path}/grant", grant)


def _ask(server: httpx.Client, method: str, path: str, body: dict[str, str], taken: bool = False) -> str:
    """The error code of a reply, empty where there is none. MLflow's own client of these imports its whole server."""
    try:
        reply = server.request(method, path, json=body)
        code = "" if reply.is_success else str(reply.json().get("error_code", ""))
    except (httpx.HTTPError, ValueError) as error:
        raise RegistryError(f"MLflow: {path}: {error or type(error).__name__}; does it run with basic-auth?") from error
    if not reply.is_success and not (taken and code == _TAKEN):
        raise RegistryError(
            f"MLflow: {path} for {body['username']}: HTTP {reply.status_code} {code}; is this the administrator?"
        )
    return code


def _write(path: Path, people: Mapping[str, Identity]) -> None:
    """Closed to others before a password is in it."""
    lines = [f'[{role}]\nusername = "{p.username}"\npassword = "{p.password}"\n' for role, p in people.items()]
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            out.write("\n".join(lines))
        partial.replace(path)
    except OSError as error:
        raise SettingsError(f"identities {path}: {error.strerror or error}") from error
