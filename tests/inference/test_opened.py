"""What was hashed is what is loaded, whatever happens to its name in between."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from inference_prompts import short_prompt

from ruvllm.errors import ModelFileError
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.opened import opened, verified
from ruvllm.inference.supervised import SupervisedModel
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Sampling
from ruvllm.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an open file has no name there")


def _tier(tiers: dict[str, Tier], **changes: object) -> Tier:
    plain = {"name": "plain", "packages": (), "parts": (), "sha256": "", "file": "plain.gguf"}
    return replace(tiers["chat"], **{**plain, **changes})  # type: ignore[arg-type]


@pytest.fixture
def path(settings: Settings) -> Path:
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    path = settings.models_dir / "plain.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def test_a_verified_file_is_held_open_with_its_hash(tiers: dict[str, Tier], settings: Settings, path: Path) -> None:
    with verified(_tier(tiers), settings) as file:
        assert os.pread(file.number, 4, 0) == b"GGUF"
        assert file.identity == file.sha256
        assert len(file.sha256) == 64
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.number)


def test_a_name_given_to_another_file_meanwhile_is_refused(
    tiers: dict[str, Tier], settings: Settings, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash is then of the new file, and the open one is the old."""
    import ruvllm.inference.opened as module

    verify = module.verify

    def swapped(tier: Tier, settings: Settings, path: Path) -> str:
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())  # even of the same content
        other.replace(path)
        return verify(tier, settings, path=path)

    monkeypatch.setattr(module, "verify", swapped)
    with pytest.raises(ModelFileError, match="changed between its verification and its loading"):
        verified(_tier(tiers), settings).__enter__()


def test_a_file_that_was_never_verified_is_known_by_its_inode(path: Path) -> None:
    with opened(path) as first:
        pass
    path.write_bytes(b"GGUF" + bytes(101))
    with opened(path) as second:
        assert first.identity != second.identity
    with pytest.raises(ModelFileError, match=r"nowhere\.gguf: No such file"):
        opened(path.with_name("nowhere.gguf")).__enter__()


def test_the_worker_loads_the_open_file_and_not_its_name(
    tiers: dict[str, Tier], tiny_lfm2: Path, settings: Settings, tmp_path: Path
) -> None:
    """A name that has come to mean a file which no parser should see: the child never opens it."""
    path = tmp_path / "named.gguf"
    path.write_bytes(b"no model at all")
    with (
        opened(tiny_lfm2) as file,
        LlamaWorker(_tier(tiers), path, replace(settings, wait_policy="passive"), 1, file=file) as worker,
    ):
        assert worker.count_tokens(["the Work"])[0] > 0


def test_a_file_written_to_while_it_is_loaded_is_refused(
    tiers: dict[str, Tier], tiny_lfm2: Path, settings: Settings
) -> None:
    with opened(tiny_lfm2) as file:
        older = replace(file, mark=(*file.mark[:4], file.mark[4] - 1))  # as if it had changed since it was verified
        with pytest.raises(ModelFileError, match="changed between its verification and its loading"):
            LlamaWorker(_tier(tiers), tiny_lfm2, replace(settings, wait_policy="passive"), 1, file=older)


def test_kept_states_are_seen_from_outside(tiers: dict[str, Tier], tiny_lfm2: Path, settings: Settings) -> None:
    """What health and the gateway's metrics show: hits, and bytes within the budget."""
    own = replace(settings, wait_policy="passive", snapshots_mb=16)
    model = SupervisedModel(_tier(tiers), lambda tier: LlamaWorker(tier, tiny_lfm2, own, 1))
    assert model.state.snapshots is None  # cold
    for _ in range(3):
        model.generate(short_prompt("Which?", static="Answer from the text of this License.\n"), Sampling(), 60.0)
    kept = model.state.snapshots
    assert kept is not None
    assert (kept.count, kept.misses, kept.hits) == (1, 1, 2)
    assert 0 < kept.bytes <= 16 * 2**20
    assert kept.reused_tokens > 0
    model.close()
    assert model.state.snapshots is None
