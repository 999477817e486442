"""The hot router: what is promoted decides, what is bad never does, what was good is there after a restart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, DatabaseError
from ruvllm.registry import ledger
from ruvllm.registry.ledger import NewRow
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.serving.champion import HotRouter
from ruvllm.settings import Settings


class Gateway:
    """What decides; refuses routers of another ladder, as an answerer does."""

    def __init__(self) -> None:
        self.routers: list[RouterRuntime] = []

    def use(self, runtime: RouterRuntime) -> None:
        runtime.require("packaged", ("smollm2-135m", "gemma3-270m"), "test-encoder")
        self.routers.append(runtime)

    @property
    def versions(self) -> list[str]:
        return [each.version for each in self.routers]


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def store(settings: Settings) -> BundleStore:
    return BundleStore(settings.router_dir)


def hot(gateway: Gateway, store: BundleStore, settings: Settings, clock: list[float] | None = None) -> HotRouter:
    times = clock or [0.0]
    return HotRouter(store, settings, gateway.use, lambda: times[0])


def promote(database: Database, folder: Path, version: str, **bundle: object) -> str:
    sha256 = write_random_bundle(folder, version=f"router-{version}", seed=int(version), **bundle)  # type: ignore[arg-type]
    _append(database, folder, version, sha256)
    return sha256


def _append(database: Database, folder: Path, version: str, sha256: str) -> None:
    with database.transaction() as connection:
        row = NewRow("promote", version, sha256, str(folder), "tester")
        ledger.append(connection, ledger.current(connection), row)


def test_the_promoted_one_decides_and_outlives_a_restart_without_postgres(
    gateway: Gateway, store: BundleStore, settings: Settings, database: Database, tmp_path: Path
) -> None:
    router = hot(gateway, store, settings)
    assert not router.load_cached()
    assert not router.reconcile(database)
    sha256 = promote(database, tmp_path / "b1", "1")
    assert router.reconcile(database)
    assert not router.reconcile(database)  # nothing new
    promote(database, tmp_path / "b2", "2")
    assert router.reconcile(database)
    assert gateway.versions == ["router-1", "router-2"]
    assert (store.root / sha256).is_dir()  # kept for a rollback
    later = Gateway()
    assert hot(later, BundleStore(store.root), settings).load_cached()
    assert later.versions == ["router-2"]


@pytest.mark.parametrize("damage", ["golden", "truncated", "gone", "other-ladder"])
def test_a_bad_artifact_never_replaces_a_good_one(
    gateway: Gateway, store: BundleStore, settings: Settings, database: Database, tmp_path: Path, damage: str
) -> None:
    clock = [0.0]
    router = hot(gateway, store, settings, clock)
    good = promote(database, tmp_path / "good", "1")
    router.reconcile(database)
    _promote_damaged(database, tmp_path / "bad", damage)
    assert not router.reconcile(database)
    assert (router.version, router.sha256) == ("router-1", good)
    assert router.trouble
    current = store.current()
    assert current is not None
    assert current.sha256 == good  # on disk neither: a restart has the good one
    promote(database, tmp_path / "next", "3")
    assert router.reconcile(database)
    assert router.trouble is None
    assert gateway.versions == ["router-1", "router-3"]


def _promote_damaged(database: Database, folder: Path, damage: str) -> None:
    if damage == "other-ladder":
        promote(database, folder, "2", tiers=("other", "names", "", ""))
        return
    sha256 = write_random_bundle(folder, version="router-2", seed=2)
    if damage == "golden":
        sha256 = _with_other_weights(folder)
    elif damage == "truncated":
        path = folder / "router.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
    else:
        shutil.rmtree(folder)
    _append(database, folder, "2", sha256)


def _with_other_weights(folder: Path) -> str:
    """Sound by every hash, but its golden vectors are another router's: only deciding with it tells."""
    import hashlib

    other = folder.parent / "other"
    write_random_bundle(other, version="router-2", seed=99)
    weights = (other / "router.safetensors").read_bytes()
    (folder / "router.safetensors").write_bytes(weights)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["router.safetensors"] = {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def test_a_refused_one_is_looked_at_again_once_its_artifact_may_be_restored(
    gateway: Gateway, store: BundleStore, settings: Settings, database: Database, tmp_path: Path
) -> None:
    clock = [0.0]
    router = hot(gateway, store, settings, clock)
    promote(database, tmp_path / "b", "1")
    (tmp_path / "b").rename(tmp_path / "away")
    assert not router.reconcile(database)
    (tmp_path / "away").rename(tmp_path / "b")
    clock[0] = 29.0
    assert not router.reconcile(database)  # not fetched every second
    clock[0] = 31.0
    assert router.reconcile(database)


def test_a_damaged_cache_falls_back_to_the_champion_before(
    gateway: Gateway, store: BundleStore, settings: Settings, database: Database, tmp_path: Path
) -> None:
    router = hot(gateway, store, settings)
    for version in ("1", "2"):
        promote(database, tmp_path / version, version)
        router.reconcile(database)
    (store.root / router.sha256 / "router.safetensors").write_bytes(b"damaged")
    later = Gateway()
    again = hot(later, store, settings)
    assert again.load_cached()
    assert later.versions == ["router-1"]
    assert again.trouble
    assert again.reconcile(database)  # and the registry brings the sound one back
    assert later.versions == ["router-1", "router-2"]


def test_the_last_three_are_kept_and_a_rollback_needs_no_registry(
    gateway: Gateway, store: BundleStore, settings: Settings, database: Database, tmp_path: Path
) -> None:
    router = hot(gateway, store, settings)
    digests = []
    for version in ("1", "2", "3", "4"):
        digests.append(promote(database, tmp_path / version, version))
        router.reconcile(database)
    assert {path.name for path in store.recent()} == set(digests[1:])
    for version in ("1", "2", "3", "4"):
        shutil.rmtree(tmp_path / version)
    _append(database, tmp_path / "3", "3", digests[2])
    assert router.reconcile(database)
    assert gateway.versions[-1] == "router-3"


def test_staleness_grows_while_the_ledger_is_away(
    gateway: Gateway, store: BundleStore, settings: Settings, database: Database, tmp_path: Path
) -> None:
    clock = [0.0]
    router = hot(gateway, store, settings, clock)
    promote(database, tmp_path / "b", "1")
    router.reconcile(database)
    clock[0] = 7.0
    with pytest.raises(DatabaseError):
        router.reconcile(Database("postgresql://nobody@127.0.0.1:9/none"))
    assert router.stale_s == 7.0
    assert router.version == "router-1"
    router.reconcile(database)
    assert router.stale_s == 0.0


def test_what_does_not_fit_at_the_start_is_told(gateway: Gateway, store: BundleStore, settings: Settings) -> None:
    folder = settings.state_dir / "b"
    sha256 = write_random_bundle(folder, tiers=("other", "names", "", ""))
    store.install(folder, sha256)
    store.activate(sha256, "1")
    router = hot(gateway, store, settings)
    assert not router.load_cached()
    assert "trained for ladder" in str(router.trouble)
    with pytest.raises(BundleError):
        gateway.use(RouterRuntime.load(folder))
