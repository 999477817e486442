"""Saved bases: opened without a rebuild, refused where a byte differs or they are another memory's, built anew."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest
from replica_nodes import ALONE, Written, archive, insert, node, units

from ruvllm.database.pool import Database
from ruvllm.errors import ArtifactError, ReplicaUnavailable
from ruvllm.memory.replica import Replica, ReplicaOptions, base, files, source

Open = Callable[..., Replica]


@pytest.fixture
def saved(written: Written, tmp_path: Path, open_replica: Open) -> Path:
    """The folder of a base of 300 nodes."""
    open_replica().close()
    return only(tmp_path)


def only(folder: Path) -> Path:
    (path,) = folder.glob("replica/*/*/*/base-*")
    return path


def opened(written: Written, saved: Path, options: ReplicaOptions = ALONE, **more: object) -> base.Base:
    with source.snapshot(written.database) as connection:
        head = source.head(connection)
    return base.open_base(saved, "default", head.__class__(**{**vars(head), **more}), options)


def forged(saved: Path, **fields: object) -> Path:
    """A base whose manifest says otherwise and whose name fits: what a restore, a copy or a newer release leaves."""
    about = json.loads((saved / "manifest.json").read_text())
    about.update(fields)
    del about["files"]
    (saved / "manifest.json").unlink()
    return files.publish(saved, about)


def test_a_saved_base_is_opened_and_caught_up_without_a_rebuild(
    written: Written, saved: Path, open_replica: Open
) -> None:
    (vector,) = units(1, seed=1)
    with written.database.transaction() as connection:
        (added,) = insert(connection, [node(vector)])
        archive(connection, [written.ids[0]])
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    replica = open_replica()
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before
    assert replica.search(vector, 1).ids.tolist() == [added]
    assert (replica.state.delta, replica.state.tombstones) == (1, 1)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("graph.faiss", "altered"),
        ("graph.faiss", "truncated"),
        ("columns/ids.npy", "altered"),
        ("adjacency/far.npy", "altered"),
        ("texts/records.msgpack", "removed"),
        ("words/about.json", "added"),
    ],
)
def test_a_harmed_file_is_refused_set_aside_and_built_anew(
    written: Written, saved: Path, open_replica: Open, tmp_path: Path, name: str, harm: str
) -> None:
    path = saved / name
    content = path.read_bytes()
    if harm == "truncated":
        path.write_bytes(content[:-1])
    elif harm == "altered":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif harm == "removed":
        path.unlink()
    else:
        path.with_suffix(".more").write_bytes(content)
    with pytest.raises(ArtifactError):
        opened(written, saved)
    replica = open_replica()
    assert replica.search(written.vectors[3], 1).ids.tolist() == [written.ids[3]]
    assert len(list(tmp_path.glob("replica/*/*/*/refused-*"))) == 1
    opened(written, only(tmp_path))


def test_an_altered_manifest_is_refused_before_it_is_read(written: Written, saved: Path) -> None:
    path = saved / "manifest.json"
    path.write_text(path.read_text().replace('"nodes": 300', '"nodes": 301'))
    with pytest.raises(ArtifactError, match="was altered"):
        opened(written, saved)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="was altered"):
        opened(written, saved)
    path.unlink()
    with pytest.raises(ArtifactError, match="No such file"):
        opened(written, saved)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"tenant": "another"}, "tenant is 'another', want 'default'"),
        ({"encoder": "other-encoder"}, "encoder is 'other-encoder', want 'test-encoder'"),
        ({"dimension": 8}, "dimension is 8, want 384"),
        ({"log": "0"}, "log is '0'"),
        ({"system": "1"}, "system is '1'"),
        ({"timeline": 99}, "timeline is 99"),
        ({"layout": base.LAYOUT + 1}, "layout is 2, want 1"),
        ({"position": "999999999:999999999:"}, "is of transaction 999999999, the server is at"),
    ],
)
def test_what_belongs_elsewhere_is_refused_and_built_anew(
    written: Written, saved: Path, open_replica: Open, said: dict[str, object], reason: str
) -> None:
    wrong = forged(saved, **said)
    with pytest.raises(ArtifactError, match=reason):
        opened(written, wrong)
    replica = open_replica()
    assert replica.state.nodes == 300
    assert not wrong.exists()


def test_a_base_from_before_the_log_begins_is_refused(written: Written, saved: Path) -> None:
    with pytest.raises(ArtifactError, match="the log begins at"):
        opened(written, saved, whole_from=10**9)


def test_what_was_forgotten_lies_in_no_base_any_more(written: Written, saved: Path, open_replica: Open) -> None:
    """The log begins anew: bases of before go, set aside or not, and those that another process saved without words."""
    open_replica(replace(ALONE, words=False)).close()
    refused = saved.with_name("refused-" + saved.name)
    shutil.copytree(saved, refused)
    (refused / "graph.faiss").write_bytes(b"harmed")
    open_replica().close()
    assert refused.exists(), "what was harmed is kept for whoever wants to know why"
    with psycopg.connect(written.database._dsn) as connection:
        forgotten = "UPDATE memory.change_log SET whole_from = (pg_current_xact_id()::text::bigint + 1)::text::xid8"
        connection.execute(forgotten)
    root = saved.parents[3]
    before = {path.parent.name for path in root.rglob("manifest.json")}
    assert len(before) == 3
    replica = open_replica()
    assert replica.state.nodes == 300
    assert {path.parent.name for path in root.rglob("manifest.json")} == {only(root.parent).name} - before


def test_bases_of_an_earlier_encoder_or_of_a_log_long_unused_are_removed(
    written: Written, saved: Path, open_replica: Open
) -> None:
    log, encoder = saved.parent, saved.parents[1]
    earlier_encoder = encoder.with_name("0" * 16) / log.name
    shutil.copytree(log, earlier_encoder)
    fresh, unused = log.with_name("1" * 16), log.with_name("2" * 16)
    for folder in (fresh, unused):
        shutil.copytree(log, folder)
    for path in (unused, unused / "lock"):
        os.utime(path, (0, 0))
    other_tenant = saved.parents[2].with_name("3" * 16) / encoder.name / log.name
    shutil.copytree(log, other_tenant)
    open_replica()
    gone = [path for path in (earlier_encoder, unused, fresh, other_tenant) if not path.exists()]
    assert gone == [earlier_encoder, unused]


def test_a_base_without_words_is_not_opened_where_words_are_wanted(written: Written, saved: Path) -> None:
    with pytest.raises(ArtifactError, match="words is True, want False"):
        opened(written, saved, ReplicaOptions(words=False))


def test_half_written_bases_are_never_opened(written: Written, saved: Path, open_replica: Open) -> None:
    """A kill leaves a staging folder; the next build removes it."""
    half = saved.with_name("staging-1-dead")
    shutil.copytree(saved, half)
    shutil.rmtree(saved)
    assert files.published(half.parent) == []
    assert open_replica().state.nodes == 300
    assert not half.exists()


@pytest.mark.parametrize("step", ["_entry", "_sync"])
def test_a_crash_while_saving_leaves_the_earlier_base(
    written: Written, saved: Path, open_replica: Open, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    replica = open_replica()

    def crash(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, step, crash)
    with pytest.raises(OSError, match="No space"):
        replica.rebuild()
    monkeypatch.undo()
    assert replica.search(written.vectors[5], 1).ids.tolist() == [written.ids[5]]
    assert files.published(saved.parent) == [saved]
    opened(written, saved)


def test_two_processes_at_once_build_one_base(written: Written, database_url: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (database_url, tmp_path / "replica")
    processes = [context.Process(target=_open_and_close, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    opened(written, only(tmp_path))


def _open_and_close(database_url: str, folder: Path) -> None:
    database = Database(database_url)
    replica = Replica.open(database, folder, ALONE)
    assert replica.state.nodes == 300
    replica.close()
    database.close()


def test_another_tenants_rows_are_in_no_file(written: Written, open_replica: Open, tmp_path: Path) -> None:
    other = Database(written.database._dsn, tenant="other")
    (vector,) = units(1, seed=9)
    with other.transaction() as connection:
        (secret,) = insert(connection, [node(vector, text="SECRETWORD", source="SECRETSOURCE", tags=("SECRETTAG",))])
    ours, theirs = open_replica(), open_replica(of=other)
    other.close()
    assert secret not in ours.search(vector, 1000).ids
    assert ours.nodes([secret]) == []
    assert ours.walk([secret]).ids.tolist() == []
    assert theirs.search(written.vectors[0], 1000).ids.tolist() == [secret]
    folders = {path.parents[1]: path for path in tmp_path.glob("replica/*/*/*/base-*")}
    assert len(folders) == 2
    holding = [path for path in folders.values() if any(b"SECRET" in file.read_bytes() for file in _files(path))]
    assert len(holding) == 1
    for path in folders.values():
        ids = np.load(path / "columns" / "ids.npy")
        assert (secret in ids) == (path in holding)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_cold_replica_says_so_and_is_ready_when_its_base_is_there(written: Written, open_replica: Open) -> None:
    with written.database.transaction() as connection:  # a lock that the builder has to wait for
        connection.execute("LOCK TABLE memory.nodes IN ACCESS EXCLUSIVE MODE")
        replica = open_replica(ReplicaOptions(poll_s=0, max_staleness_s=3600, wait=False))
        assert not replica.state.ready
        assert replica.state.staleness_s is None
        with pytest.raises(ReplicaUnavailable, match="it has no base yet"):
            replica.search(written.vectors[0], 1)
    replica._builder.join()
    assert replica.state.ready
    assert replica.search(written.vectors[0], 1).ids.tolist() == [written.ids[0]]
