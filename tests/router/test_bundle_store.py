"""The local cache: whole copies, one current bundle, damage reported and never taken for "none yet"."""

import os
import resource
import time
from pathlib import Path

import pytest

from ruvllm.errors import BundleError
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "cache")


def installed(store: BundleStore, seed: int) -> str:
    source = store.root.parent / f"source-{seed}"
    digest = write_random_bundle(source, seed=seed)
    store.install(source, digest)
    return digest


def test_none_before_the_first(store: BundleStore) -> None:
    assert store.current() is None
    assert not store.root.exists()


def test_an_activated_bundle_is_current_and_loads(store: BundleStore) -> None:
    digest = installed(store, 0)
    assert store.current() is None
    store.activate(digest, "3")
    current = BundleStore(store.root).current()
    assert current is not None
    assert (current.sha256, current.version) == (digest, "3")
    assert RouterRuntime.load(current.path, current.sha256).version == "test"


def test_only_the_wanted_bundle_is_installed(store: BundleStore, tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "source")
    with pytest.raises(BundleError, match="want " + "0" * 64):
        store.install(tmp_path / "source", "0" * 64)
    with pytest.raises(BundleError, match="64 hexadecimal"):
        store.activate("../../elsewhere", "1")
    with pytest.raises(BundleError, match="No such file"):
        store.activate("0" * 64, "1")
    assert store.current() is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"sha256": "x", "version": "1"}', b'{"version": "1"}', b"\xff"]
)
def test_a_damaged_pointer_is_an_error(store: BundleStore, content: bytes) -> None:
    store.activate(installed(store, 0), "1")
    (store.root / "current.json").write_bytes(content)
    with pytest.raises(BundleError):
        store.current()
    with pytest.raises(BundleError):
        store.prune()


def test_a_damaged_bundle_is_an_error_and_installing_again_mends_it(store: BundleStore) -> None:
    digest = installed(store, 0)
    store.activate(digest, "1")
    path = store.root / digest / "router.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match=r"router\.safetensors has 100 bytes"):
        store.current()
    store.install(store.root.parent / "source-0", digest)
    assert store.current() is not None


def test_a_full_disk_leaves_the_old_bundle_current(store: BundleStore, tmp_path: Path) -> None:
    first = installed(store, 0)
    store.activate(first, "1")
    second = write_random_bundle(tmp_path / "second", seed=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(BundleError, match="not installed"):
            store.install(tmp_path / "second", second)
        with pytest.raises(BundleError, match=r"current\.json: not written"):
            store.activate(first, "2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    current = store.current()
    assert current is not None
    assert (current.sha256, current.version) == (first, "1")
    assert sorted(path.name for path in store.root.iterdir()) == sorted([first, "current.json"])


def test_prune_keeps_what_was_current_last(store: BundleStore) -> None:
    digests = [installed(store, seed) for seed in range(5)]
    for age, digest in enumerate(reversed(digests)):
        os.utime(store.root / digest, (1_000_000 - age, 1_000_000 - age))
    store.activate(digests[1], "rolled-back")
    store.activate(digests[0], "rolled-back-again")  # the oldest is current
    assert set(store.prune(keep=3)) == set(digests[2:4])
    assert {path.name for path in store.root.iterdir()} == {digests[0], digests[1], digests[4], "current.json"}
    assert store.prune(keep=1) == (digests[1], digests[4])
    assert store.current() is not None


def test_prune_sweeps_what_a_killed_process_left(store: BundleStore) -> None:
    digest = installed(store, 0)
    store.activate(digest, "1")
    old, young = store.root / ".partial-old", store.root / ".partial-young"
    old.mkdir()
    young.mkdir()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    store.prune()
    assert not old.exists()
    assert young.exists()
