"""How a promoted bundle reaches this machine: from a folder or MLflow's REST into the local cache.

Never imports mlflow, so the gateway uses it too. Only paths of ours and the configured tracking server are read, and
nothing replaces the champion in the cache before it was verified.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import httpx

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, RegistryError
from ruvllm.registry import ledger
from ruvllm.registry.identities import ANY, identity
from ruvllm.registry.ledger import LedgerRow
from ruvllm.router.bundle import MANIFEST_FILE, verify_bundle
from ruvllm.router.manifest import parse_manifest
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore, CurrentBundle
from ruvllm.settings import Settings

KEEP = 3  # bundles in the cache: the champion, and what a rollback may want
_MAX_BYTES = 64 * 1024 * 1024
_TIMEOUT = httpx.Timeout(10.0, connect=3.0)
log = logging.getLogger(__name__)


def sync_champion(database: Database, store: BundleStore, settings: Settings) -> CurrentBundle | None:
    """The ledger's champion in the local cache, fetched where it is not there; None before the first promotion.

    Raises:
        DatabaseError: the ledger cannot be read.
        BundleError: the artifact is missing or altered, or does not decide as it did in training.
        RegistryError: it cannot be reached. In each case the cache stays as it was.
    """
    with database.transaction() as connection:
        row = ledger.current(connection)
    if row is None:
        return None
    found = _current(store)
    if found is not None and (found.sha256, found.version) == (row.sha256, row.version):
        return found
    current = _activate_cached(store, row) or _install(store, row, settings)
    store.prune(KEEP)
    return current


def _current(store: BundleStore) -> CurrentBundle | None:
    try:
        return store.current()
    except BundleError as error:
        log.warning("the cached champion is fetched again: %s", error)
        return None


def _activate_cached(store: BundleStore, row: LedgerRow) -> CurrentBundle | None:
    """The champion, where a sound copy is in the cache already, as after a rollback."""
    try:
        RouterRuntime.load(store.root / row.sha256, row.sha256)
        return store.activate(row.sha256, row.version)
    except BundleError:
        return None


def _install(store: BundleStore, row: LedgerRow, settings: Settings) -> CurrentBundle:
    with tempfile.TemporaryDirectory(prefix="ruvllm-bundle-") as place:
        folder = fetch_bundle(row.artifact_uri, row.sha256, Path(place) / "bundle", settings)
        RouterRuntime.load(folder, row.sha256)  # its golden vectors come out, or it is not kept
        store.install(folder, row.sha256)
    return store.activate(row.sha256, row.version)


def fetch_bundle(uri: str, sha256: str, into: Path, settings: Settings) -> Path:
    """Bring the bundle folder at `uri` to `into` and verify it; `sha256` is of its manifest.

    Raises:
        BundleError: a file is missing, altered or too large.
        RegistryError: the server cannot be reached.
    """
    content = read_artifact(f"{uri}/{MANIFEST_FILE}", settings)
    if (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise BundleError(f"bundle {uri}: {MANIFEST_FILE}: sha256 is {got}, want {sha256}; the artifact was altered")
    into.mkdir(parents=True)
    try:
        (into / MANIFEST_FILE).write_bytes(content)
        for name in parse_manifest(content).files:
            if Path(name).name != name:
                raise BundleError(f"bundle {uri}: its manifest lists {name!r}, want plain file names")
            (into / name).write_bytes(read_artifact(f"{uri}/{name}", settings))
        verify_bundle(into, sha256)
    except OSError as error:
        shutil.rmtree(into, ignore_errors=True)
        raise BundleError(f"bundle {uri}: not written to {into}: {error.strerror or error}") from error
    except BundleError:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return into


def read_artifact(uri: str, settings: Settings) -> bytes:
    """The file at `uri`: a path, file:, mlflow-artifacts:, or a URL under the tracking URI.

    Raises:
        BundleError: it is not there or too large.
        RegistryError: the server cannot be reached, or the URI is of another kind.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return _read_file(_where_it_lies(Path(unquote(parts.path)), settings))
    server = settings.mlflow_tracking_uri.rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise RegistryError(f"artifact {uri}: MLFLOW_TRACKING_URI is {server!r}, want the server's http(s) address")
    if parts.scheme == "mlflow-artifacts":
        return _read_url(f"{server}/api/2.0/mlflow-artifacts/artifacts{quote(unquote(parts.path))}", settings)
    if uri.startswith(f"{server}/"):
        return _read_url(uri, settings)
    raise RegistryError(
        f"artifact {uri}: want a path, file:, mlflow-artifacts: or an address under the tracking server"
    )


def _where_it_lies(path: Path, settings: Settings) -> Path:
    """`path`, or the same artifact of this state directory: a restored backup may lie in another folder than before."""
    _, found, rest = path.as_posix().rpartition("/mlflow/artifacts/")
    moved = settings.state_dir / "mlflow" / "artifacts" / rest
    return moved if found and not path.exists() and moved.is_file() else path


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _bounded(file.read(_MAX_BYTES + 1), str(path))
    except OSError as error:
        raise BundleError(f"artifact {path}: {error.strerror or error}; restore it, or roll back") from error


def _read_url(url: str, settings: Settings) -> bytes:
    shown = url.rsplit("@", 1)[-1]  # without a password
    who = identity(settings, ANY)
    login = (who.username, who.password) if who else None  # None: the one in the address, if it has one
    try:
        with httpx.stream("GET", url, auth=login, timeout=_TIMEOUT, follow_redirects=False) as response:
            if response.status_code != httpx.codes.OK:
                raise BundleError(f"artifact {shown}: HTTP {response.status_code}, want 200; restore it, or roll back")
            content = b""
            for chunk in response.iter_bytes():
                content = _bounded(content + chunk, shown)
            return content
    except httpx.HTTPError as error:
        raise RegistryError(
            f"artifact {shown}: {error or type(error).__name__}; is the MLflow server running?"
        ) from error


def _bounded(content: bytes, name: str) -> bytes:
    if len(content) > _MAX_BYTES:
        raise BundleError(f"artifact {name}: over {_MAX_BYTES} bytes, want a router bundle's file")
    return content
