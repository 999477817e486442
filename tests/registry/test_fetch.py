"""How a champion reaches the local cache: copied or over MLflow's REST, verified, and kept when the source is gone."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, RegistryError
from ruvllm.registry import ledger
from ruvllm.registry.fetch import fetch_bundle, read_artifact, sync_champion
from ruvllm.registry.ledger import LedgerRow, NewRow
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.store import BundleStore
from ruvllm.settings import Settings


@pytest.fixture
def store(settings: Settings) -> BundleStore:
    return BundleStore(settings.router_dir)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def promote(database: Database, artifacts: Path, version: str, uri: str = "") -> tuple[LedgerRow, Path]:
    folder = artifacts / version
    sha256 = write_random_bundle(folder, version=f"router-{version}", seed=int(version))
    with database.transaction() as connection:
        row = NewRow("promote", version, sha256, uri or folder.as_uri(), "tester")
        return ledger.append(connection, ledger.current(connection), row), folder


@pytest.fixture
def server(artifacts: Path, settings: Settings) -> Iterator[Settings]:
    """The artifacts behind the address that MLflow's server has them at."""

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(artifacts / path.removeprefix("/api/2.0/mlflow-artifacts/artifacts/"))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler)) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield replace(settings, mlflow_tracking_uri=f"http://127.0.0.1:{http.server_port}")
        http.shutdown()
        thread.join()


def test_before_the_first_promotion_there_is_no_champion(
    database: Database, store: BundleStore, settings: Settings
) -> None:
    assert sync_champion(database, store, settings) is None


def test_the_champion_is_copied_once_and_survives_its_source(
    database: Database, store: BundleStore, settings: Settings, artifacts: Path
) -> None:
    row, _ = promote(database, artifacts, "1")
    first = sync_champion(database, store, settings)
    assert first is not None
    assert (first.version, first.sha256) == ("1", row.sha256)
    shutil.move(artifacts, artifacts.with_name("moved-away"))
    assert sync_champion(database, store, settings) == first
    assert BundleStore(settings.router_dir).current() == first  # what a gateway that starts now finds


def test_a_rollback_uses_the_cache_when_the_artifacts_are_gone(
    database: Database, store: BundleStore, settings: Settings, artifacts: Path
) -> None:
    first, _ = promote(database, artifacts, "1")
    sync_champion(database, store, settings)
    promote(database, artifacts, "2")
    assert sync_champion(database, store, settings).version == "2"  # type: ignore[union-attr]
    shutil.rmtree(artifacts)
    with database.transaction() as connection:
        row = NewRow("rollback", "1", first.sha256, first.artifact_uri, "tester")
        ledger.append(connection, ledger.current(connection), row)
    assert sync_champion(database, store, settings).version == "1"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["manifest.json", "router.safetensors", "golden.safetensors"])
def test_an_altered_artifact_never_replaces_a_good_one(
    database: Database, store: BundleStore, settings: Settings, artifacts: Path, name: str
) -> None:
    promote(database, artifacts, "1")
    good = sync_champion(database, store, settings)
    _, folder = promote(database, artifacts, "2")
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=name):
        sync_champion(database, store, settings)
    assert store.current() == good


def test_a_bundle_whose_golden_vectors_do_not_come_out_never_becomes_current(
    database: Database, store: BundleStore, settings: Settings, artifacts: Path
) -> None:
    """Sound by every hash, but the weights are another router's; nor does it where it lies in the cache already."""
    promote(database, artifacts, "1")
    good = sync_champion(database, store, settings)
    folder, other = artifacts / "2", artifacts / "other"
    write_random_bundle(folder, version="router-2", seed=2)
    write_random_bundle(other, version="router-2", seed=99)
    weights = (other / "router.safetensors").read_bytes()
    (folder / "router.safetensors").write_bytes(weights)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["router.safetensors"] = {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    with database.transaction() as connection:
        ledger.append(connection, ledger.current(connection), NewRow("promote", "2", sha256, folder.as_uri(), "tester"))
    for _ in range(2):
        with pytest.raises(BundleError, match="golden"):
            sync_champion(database, store, settings)
        assert store.current() == good
        store.install(folder, sha256)  # as who fetched it without looking


def test_a_damaged_cache_is_filled_again(
    database: Database, store: BundleStore, settings: Settings, artifacts: Path
) -> None:
    promote(database, artifacts, "1")
    good = sync_champion(database, store, settings)
    assert good is not None
    (good.path / "router.safetensors").write_bytes(b"rot")
    (settings.router_dir / "current.json").write_text("{")
    assert sync_champion(database, store, settings) == good
    assert store.current() == good


def test_an_artifact_of_the_tracking_server_comes_over_http(
    database: Database, store: BundleStore, server: Settings, artifacts: Path
) -> None:
    row, _ = promote(database, artifacts, "1", uri="mlflow-artifacts:/1")
    assert sync_champion(database, store, server).sha256 == row.sha256  # type: ignore[union-attr]
    with pytest.raises(BundleError, match="HTTP 404"):
        read_artifact("mlflow-artifacts:/1/absent", server)


def test_a_server_that_is_away_is_an_error_that_names_it(settings: Settings, tmp_path: Path) -> None:
    away = replace(settings, mlflow_tracking_uri="http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9.*is the MLflow server running"):
        fetch_bundle("mlflow-artifacts:/1", "0" * 64, tmp_path / "bundle", away)


@pytest.mark.parametrize("uri", ["s3://bucket/x", "http://elsewhere.example/x", "http://127.0.0.1:9.evil.example/x"])
def test_only_the_configured_server_is_asked(settings: Settings, uri: str) -> None:
    with pytest.raises(RegistryError, match="tracking server"):
        read_artifact(uri, replace(settings, mlflow_tracking_uri="http://127.0.0.1:9"))
