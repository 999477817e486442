"""Bundles: written whole or not at all; whatever is altered afterwards is refused before it is used."""

import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ruvllm.errors import BundleError
from ruvllm.router.bundle import read_bundle, verify_bundle, write_bundle
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.manifest import parse_manifest
from ruvllm.router.runtime import RouterRuntime


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "bundle"
    return folder, write_random_bundle(folder, dimension=8)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Writes beyond `limit` bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def resign(folder: Path, change: Callable[[dict[str, object]], None] = lambda document: None) -> str:
    """What a forger does: alter the files and make the manifest fit."""
    path = folder / "manifest.json"
    document = json.loads(path.read_bytes())
    for name, entry in document["files"].items():
        content = (folder / name).read_bytes()
        entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    change(document)
    path.write_text(json.dumps(document))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_was_written_is_read(bundle: tuple[Path, str]) -> None:
    folder, digest = bundle
    assert digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    manifest = verify_bundle(folder, digest)
    assert manifest.tiers == ("smollm2-135m", "gemma3-270m", "", "")
    assert set(manifest.files) == {"router.safetensors", "golden.safetensors", "transforms.safetensors"}
    assert parse_manifest(manifest.to_json()) == manifest
    assert read_bundle(folder).transforms is not None


def test_the_same_router_has_the_same_digest(tmp_path: Path) -> None:
    assert write_random_bundle(tmp_path / "a") == write_random_bundle(tmp_path / "b")


def test_a_bundle_is_never_overwritten(bundle: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is there already"):
        write_random_bundle(bundle[0], seed=1)
    verify_bundle(*bundle)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="is there already"):
        write_random_bundle(tmp_path / "empty")


@pytest.mark.parametrize("limit", [0, 500, 5000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    with full_disk(limit), pytest.raises(BundleError, match="not written"):
        write_random_bundle(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_two_hundred_mutations_are_all_refused(bundle: tuple[Path, str], tmp_path: Path) -> None:
    folder, digest = bundle
    rng = np.random.default_rng(11)
    names = sorted(path.name for path in folder.iterdir())
    for number in range(200):
        copy = tmp_path / f"mutant-{number}"
        shutil.copytree(folder, copy)
        _mutate(copy, names, rng)
        with pytest.raises(BundleError):
            read_bundle(copy, digest)
        shutil.rmtree(copy)


def _mutate(folder: Path, names: list[str], rng: np.random.Generator) -> None:
    name, other = rng.choice(names, 2, replace=False)
    path, kind = folder / name, rng.choice(["truncate", "flip", "swap", "append", "delete", "empty", "zero"])
    content = path.read_bytes()
    place = int(rng.integers(len(content)))
    if kind == "delete":
        path.unlink()
    elif kind == "swap":
        path.write_bytes((folder / other).read_bytes())
        (folder / other).write_bytes(content)
    else:
        flipped = content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1 :]
        zeroed = content[:place] + b"\1" * 16 + content[place + 16 :]
        mutants = {
            "truncate": content[:place],
            "flip": flipped,
            "append": content + b"\0",
            "empty": b"",
            "zero": zeroed,
        }
        path.write_bytes(mutants[kind])


def test_the_wrong_bundle_is_refused_by_name(bundle: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = bundle
    with pytest.raises(BundleError, match=rf"manifest.json: sha256 is .*, want {'0' * 64}"):
        verify_bundle(folder, "0" * 64)
    with pytest.raises(BundleError, match=r"nowhere.*No such file"):
        verify_bundle(tmp_path / "nowhere")
    (folder / "router.safetensors").unlink()
    with pytest.raises(BundleError, match=r"router\.safetensors: No such file"):
        verify_bundle(folder)


def test_size_and_hash_name_file_got_and_wanted(bundle: tuple[Path, str]) -> None:
    path = bundle[0] / "golden.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=rf"golden.* has {len(content) - 1} bytes, want {len(content)}"):
        verify_bundle(bundle[0])
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=rf"golden.*sha256 is .*, want {hashlib.sha256(content).hexdigest()}"):
        verify_bundle(bundle[0])


def test_a_flipped_weight_with_a_fitting_manifest_fails_the_golden_vectors(bundle: tuple[Path, str]) -> None:
    folder, _ = bundle
    RouterRuntime.load(folder)
    path = folder / "router.safetensors"
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + header])["quality.b"]["data_offsets"]
    content[8 + header + start + 2] ^= 0x40  # a high bit of the mantissa
    path.write_bytes(bytes(content))
    digest = resign(folder)
    verify_bundle(folder, digest)
    with pytest.raises(BundleError, match="golden vector 0: model_probs is off by"):
        RouterRuntime.load(folder, digest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=1), "format is 1"),
        (lambda d: d.update(kind="pickle"), "kind is 'pickle'"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.pop("snapshot"), "snapshot"),
        (lambda d: d.update(layout_hash="0" * 64), "feature layout 000000000000, want"),
        (lambda d: d.update(hidden=33), r"W_z is float32 \(32, 128\), want float32 \(33, 128\)"),
        (lambda d: d.update(hidden=10**9), "hidden is 1000000000"),
        (lambda d: d.update(tiers=["a", "a", "", ""]), "tiers is"),
        (lambda d: d.update(tiers=["", "a", "", ""]), "tiers is"),
        (lambda d: d.update(tiers=3), "manifest.json"),
        (lambda d: d.update(version="1\r\nset-cookie: x"), "version is"),
        (lambda d: d.update(tolerance=1.0), "tolerance is 1.0"),
        (
            lambda d: d.update(calibration={"temperature": 0, "threshold": 0, "details": {}}),
            "calibration temperature is 0",
        ),
        (lambda d: d.update(calibration={"kelvin": 0}), "kelvin"),
        (lambda d: d["deciding"].update(head="coin"), "deciding head is 'coin'"),
        (lambda d: d["deciding"].update(sharpness=0), "deciding sharpness is 0"),
        (lambda d: d["deciding"].pop("head") and d["deciding"].update(tail=1), "tail"),
        (lambda d: d.update(metrics={"regret": "low"}), "metrics regret is 'low'"),
        (lambda d: d.update(metrics={"regret": 10**400}), "metrics regret is 1000"),
        (lambda d: d["files"].pop("golden.safetensors"), "want router.safetensors and golden.safetensors"),
        (
            lambda d: d["files"].update({"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}),
            "file name is '../../etc/passwd'",
        ),
    ],
)
def test_a_forged_manifest_is_refused(
    bundle: tuple[Path, str], change: Callable[[dict[str, object]], None], message: str
) -> None:
    resign(bundle[0], change)
    with pytest.raises(BundleError, match=message):
        RouterRuntime.load(bundle[0])


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}'])
def test_what_is_no_manifest_is_refused(bundle: tuple[Path, str], content: bytes) -> None:
    (bundle[0] / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        verify_bundle(bundle[0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("W_z", np.zeros((32, 127)), r"W_z is float32 \(32, 127\)"),
        ("zeta", np.zeros(1), r"zeta is float32 \(1,\), want float32 \(\)"),
        ("b_h", np.full(32, np.nan), "b_h has values that are not finite"),
        ("b_h", np.full(32, 1e300), "b_h has values that are not finite"),
        ("feature_scale", np.zeros(128), "not positive"),
        ("W_r", np.zeros((32, 128)), "U_r, b_r"),
        ("surprise", np.zeros(1), "surprise"),
    ],
)
def test_unfit_arrays_are_not_written(
    bundle: tuple[Path, str], tmp_path: Path, name: str, value: np.ndarray, message: str
) -> None:
    good = read_bundle(bundle[0])
    with pytest.raises(BundleError, match=message):
        write_bundle(tmp_path / "bad", {**good.arrays, name: value}, good.manifest, golden=good.golden)
    assert not (tmp_path / "bad").exists()


def test_a_bundle_needs_a_golden_vector(bundle: tuple[Path, str], tmp_path: Path) -> None:
    good = read_bundle(bundle[0])
    empty = replace(good.golden, **{name: array[:0] for name, array in good.golden.arrays().items()})
    with pytest.raises(BundleError, match="golden"):
        write_bundle(tmp_path / "bad", good.arrays, good.manifest, golden=empty)
