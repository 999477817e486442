"""The drill: a backup of a living installation, brought back elsewhere, is the same installation."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from ruvllm.backup import take as taking
from ruvllm.backup.bring_back import restore
from ruvllm.backup.digest import alike, table_digests
from ruvllm.backup.manifest import DUMP, MANIFEST, read_manifest
from ruvllm.backup.take import Taken, take
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import ArtifactError, DatabaseError
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.registry import ledger
from ruvllm.registry.fetch import sync_champion
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.settings import Settings
from tests.analytics.analytics_rows import add_night, fill

QUESTIONS = [f"river {i} of the north" for i in range(10)]


@dataclass(frozen=True)
class Installation:
    settings: Settings
    found: list[list[str]]  # recall@10 of each question
    champion: str  # its bundle's sha256


def found(settings: Settings) -> list[list[str]]:
    database = Database(settings.database_url)
    memory = Memory(database, EmbeddingAdapter(HashingEncoder()), settings)
    hits = [[hit.node.uuid for hit in memory.search_text(question, 10)] for question in QUESTIONS]
    database.close()
    return hits


def champion_of(settings: Settings) -> str:
    database = Database(settings.database_url)
    try:
        current = sync_champion(database, BundleStore(settings.router_dir), settings)
        assert current is not None
        return RouterRuntime.load(current.path, current.sha256).sha256
    finally:
        database.close()


@pytest.fixture
def living(settings: Settings, database_url: str, database: Database) -> Installation:
    """Memory, answers, nights, a champion whose bundle is an artifact, MLflow's figures, a replay and an EWC state."""
    here = replace(settings, database_url=database_url)
    memory = Memory(database, EmbeddingAdapter(HashingEncoder()), here)
    ids = memory.add([NewNode(f"river {i} of country {i % 9} \U0001f332 'quoted'") for i in range(120)]).ids
    memory.link_all([(ids[0], ids[1], "Cites", 0.5)], "test")
    bundle = here.state_dir / "mlflow" / "artifacts" / "run" / "bundle"
    write_random_bundle(bundle, version="night-1", seed=3)
    sha256 = RouterRuntime.load(bundle).sha256
    with psycopg.connect(database_url) as owner:
        fill(owner, "default", 30)
        add_night(owner, "default", 1, promoted=False)
        owner.execute("INSERT INTO learning.replay (tenant, slot, query) SELECT 'default', 0, 'default1'")
        owner.execute(
            "INSERT INTO learning.ewc_state (tenant, router_version, layout_hash, state, sha256, penalty, decay,"
            " samples) VALUES ('default', '1', 'h', '\\x00ff', 's', 1, 0.9, 5)"
        )
        ledger.append(owner, None, ledger.NewRow("promote", "1", sha256, bundle.as_uri(), "alice"))
    with closing(sqlite3.connect(here.state_dir / "mlflow" / "mlflow.db")) as mlflow, mlflow:
        mlflow.execute("CREATE TABLE runs (run_uuid TEXT, artifact_uri TEXT, n INTEGER)")
        mlflow.execute("INSERT INTO runs VALUES ('a', ?, 5)", [f"{bundle.parent.as_uri()}"])
    workspace = here.state_dir / "cycles" / "night-0001"
    (workspace / ".dvc" / "tmp").mkdir(parents=True)
    (workspace / ".dvc" / "tmp" / "lock").write_text("made anew")
    (workspace / "snapshot.npz").write_bytes(b"rows")
    return Installation(here, found(here), champion_of(here))


@pytest.fixture
def empty(tmp_path: Path, empty_database_url: str, settings: Settings) -> Settings:
    return replace(settings, state_dir=tmp_path / "elsewhere", database_url=empty_database_url)


@pytest.fixture
def taken(living: Installation, tmp_path: Path) -> Taken:
    return take(living.settings, tmp_path / "backups")


def test_what_is_brought_back_is_the_same(living: Installation, taken: Taken, empty: Settings) -> None:
    shutil.rmtree(living.settings.state_dir)  # the machine is gone
    done = restore(empty, taken.folder)
    with psycopg.connect(empty.database_url) as connection:
        assert table_digests(connection) == taken.manifest.tables
        owners = connection.execute(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class"
            " WHERE relnamespace = 'analytics'::regnamespace AND relkind = 'v'"
        ).fetchall()
    assert owners == [("ruvllm_views",)]  # a restoring superuser's views would pass row-level security
    assert found(empty) == living.found
    assert champion_of(empty) == living.champion
    assert done.manifest.champion == "1"
    assert done.manifest.tables["learning.ewc_state"].rows == done.manifest.tables["learning.replay"].rows == 1
    with closing(sqlite3.connect(empty.state_dir / "mlflow" / "mlflow.db")) as mlflow:
        here = (empty.state_dir / "mlflow" / "artifacts" / "run").as_uri()
        assert mlflow.execute("SELECT artifact_uri, n FROM runs").fetchall() == [(here, 5)]
    assert (empty.state_dir / "cycles" / "night-0001" / "snapshot.npz").read_bytes() == b"rows"
    assert not (empty.state_dir / "cycles" / "night-0001" / ".dvc").exists()
    Database(empty.database_url).close()


def test_memory_goes_on_after_it(living: Installation, taken: Taken, empty: Settings) -> None:
    """Sequences, triggers and row-level security came back too."""
    restore(empty, taken.folder)
    database = Database(empty.database_url)
    memory = Memory(database, EmbeddingAdapter(HashingEncoder()), empty)
    assert memory.add([NewNode("a river after the flood")]).written == 1
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM serving.interactions").fetchone() == (30,)
    database.close()
    with psycopg.connect(empty.database_url, autocommit=True) as owner:
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            owner.execute("UPDATE registry.ledger SET version = '2'")
        assert owner.execute("SELECT has_table_privilege('ruvllm_app', 'registry.ledger', 'INSERT')").fetchone() == (
            True,
        )


def test_an_altered_backup_is_refused_before_anything_is_written(taken: Taken, empty: Settings) -> None:
    content = bytearray((taken.folder / DUMP).read_bytes())
    content[len(content) // 2] ^= 1
    (taken.folder / DUMP).write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=rf"{DUMP}: sha256 is"):
        restore(empty, taken.folder)
    (taken.folder / DUMP).unlink()
    with pytest.raises(ArtifactError, match=rf"{DUMP}: sha256 is missing"):
        restore(empty, taken.folder)
    with psycopg.connect(empty.database_url) as connection:
        assert connection.execute("SELECT to_regnamespace('memory')").fetchone() == (None,)
    assert not empty.state_dir.exists()


def test_a_manifest_cannot_reach_outside(taken: Taken, empty: Settings) -> None:
    path = taken.folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"]["../../etc/passwd"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="want paths inside of the backup"):
        restore(empty, taken.folder)


def test_nothing_that_is_there_is_overwritten(living: Installation, taken: Taken, empty: Settings) -> None:
    with pytest.raises(ArtifactError, match="holds mlflow/artifacts already"):
        restore(replace(living.settings, database_url=empty.database_url), taken.folder)
    with pytest.raises(DatabaseError, match="holds a memory already"):
        restore(replace(empty, database_url=living.settings.database_url), taken.folder)


def test_a_backup_that_fails_leaves_nothing_under_its_name(
    living: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(taking.shutil, "copytree", full)
    with pytest.raises(ArtifactError, match="No space left on device; free some space"):
        take(living.settings, tmp_path / "backups")
    assert list((tmp_path / "backups").iterdir()) == []


def test_only_whole_backups_are_let_go(living: Installation, taken: Taken, tmp_path: Path) -> None:
    theirs = tmp_path / "backups" / "ruvllm-notes"
    theirs.mkdir()
    second = take(living.settings, tmp_path / "backups", keep=1)
    assert second.removed == (taken.folder.name,)
    assert sorted(path.name for path in (tmp_path / "backups").iterdir()) == sorted(
        [second.folder.name, "ruvllm-notes"]
    )


def test_a_row_that_differs_is_found(living: Installation, taken: Taken) -> None:
    """The digests are what the restore is judged by: one changed letter shows, ids and times do not where left out."""
    with psycopg.connect(living.settings.database_url) as connection:
        before = table_digests(connection), table_digests(connection, alike)
        connection.execute("UPDATE memory.node_usage SET last_used_at = now()")
        connection.execute("UPDATE learning.cycles SET started_at = now()")
        connection.execute('UPDATE memory.node_texts SET metadata = metadata || \'{"at": "2026-01-01"}\'')
        assert table_digests(connection, alike) == before[1]
        assert table_digests(connection) != before[0]
        connection.execute("UPDATE memory.node_texts SET text = text || '.' WHERE text LIKE 'river 7 %'")
        assert table_digests(connection, alike)["memory.node_texts"] != before[1]["memory.node_texts"]


def test_a_folder_without_a_manifest_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)
