"""A thousand altered model files: every one is refused before a process is started that would parse it."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ruvllm.errors import ModelFileError, WorkerDiedError
from ruvllm.inference import files
from ruvllm.inference.blank import write_gguf
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.shapes import TINY
from ruvllm.inference.tiers import Ladder, Tier, load_catalogue
from ruvllm.settings import Settings

COUNT, BATCH = 1000, 100
SMALLEST = replace(TINY, layers=2, attention=(1,), feed_forward=64, vocabulary=264)  # 0.3 MB: a thousand in seconds


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("sound") / "sound.gguf", SMALLEST, "Q4_0").read_bytes()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file too, of the same size: another seed."""
    return write_gguf(tmp_path_factory.mktemp("other") / "other.gguf", SMALLEST, "Q4_0", seed=1).read_bytes()


def _flipped(content: bytes, rng: random.Random) -> bytes:
    """One bit."""
    place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _extended(content: bytes, rng: random.Random) -> bytes:
    return content + rng.randbytes(rng.randrange(1, 4096))


def _swapped(content: bytes, rng: random.Random) -> bytes:
    """Two blocks of the weights in each other's place; the same bytes, of the right size."""
    size = 512
    one, two = sorted(rng.sample(range(len(content) // 2, len(content) - size, size), 2))
    blocks = content[one : one + size], content[two : two + size]
    assert blocks[0] != blocks[1]
    return content[:one] + blocks[1] + content[one + size : two] + blocks[0] + content[two + size :]


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) // 2, len(content) - 4096)
    return content[:start] + bytes(4096) + content[start + 4096 :]


def _with_other_magic(content: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"GGML", b"ggjt", b"\x7fELF", b"PK\x03\x04", rng.randbytes(4)]) + content[4:]


def _with_other_counts(content: bytes, rng: random.Random) -> bytes:
    """Version, number of tensors or number of keys, small and huge: what parsers have overflowed on."""
    place, width = rng.choice([(4, 4), (8, 8), (16, 8)])
    value = rng.choice([0, 1, 2**31, 2**32 - 1, rng.getrandbits(8 * width)]) % 2 ** (8 * width)
    made = content[:place] + value.to_bytes(width, "little") + content[place + width :]
    return made if made != content else _flipped(content, rng)


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flipped,
    _truncated,
    _extended,
    _swapped,
    _zeroed,
    _with_other_magic,
    _with_other_counts,
)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was started as a process; each is one that ends at once instead."""
    started: list[object] = []
    really = subprocess.Popen.__init__

    def instead(self: subprocess.Popen[bytes], args: object, **options: Any) -> None:
        started.append(args)
        really(self, [sys.executable, "-c", ""], **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", instead)
    return started


def _tier(name: str, sha256: str = "") -> Tier:
    """A tier of the LFM2 ladder whose shape is not checked, so that the hash alone decides."""
    return replace(load_catalogue()["lfm2"][0], name=f"mutated-{name}", file=f"{name}.gguf", sha256=sha256)


def _ask(tier: Tier, settings: Settings) -> None:
    with ModelPool(settings, Ladder("lfm2", (tier,), "for a test"), threads=1) as pool:
        pool.model(0).count_tokens(["anything"])


def _refused(tier: Tier, settings: Settings) -> None:
    with pytest.raises(ModelFileError, match="sha256 is"):
        _ask(tier, settings)


def _put(tier: Tier, content: bytes, settings: Settings) -> Tier:
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    (settings.models_dir / tier.file).write_bytes(content)
    return tier


def test_a_thousand_altered_files_are_refused_before_anything_parses_them(
    sound: bytes, other: bytes, settings: Settings, spawned: list[object]
) -> None:
    rng, pinned = random.Random(20261122), hashlib.sha256(sound).hexdigest()
    waiting = [_put(_tier("another", pinned), other, settings)]  # a sound model of the same size, but not this one
    for number in range(COUNT):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        altered = mutation(sound, rng)
        assert altered != sound
        waiting.append(_put(_tier(f"{mutation.__name__}-{number}", pinned), altered, settings))
        if len(waiting) == BATCH:  # a file is looked at once it is a moment old
            for tier in waiting:
                _refused(tier, settings)
                (settings.models_dir / tier.file).unlink()
            waiting.clear()
    for tier in waiting:
        _refused(tier, settings)
    assert len(other) == len(sound)
    assert spawned == []


def test_the_sound_file_gets_as_far_as_a_process(sound: bytes, settings: Settings, spawned: list[object]) -> None:
    """The control: what is refused above is refused for its bytes, not for something else."""
    tier = _put(_tier("sound", hashlib.sha256(sound).hexdigest()), sound, settings)
    with pytest.raises(WorkerDiedError):
        _ask(tier, settings)
    assert spawned


def test_without_a_pin_the_recorded_hash_refuses_them(sound: bytes, settings: Settings, spawned: list[object]) -> None:
    tier, rng = _put(_tier("recorded"), sound, settings), random.Random(1)
    files.ensure(tier, settings)
    for mutation in MUTATIONS:
        _refused(_put(tier, mutation(sound, rng), settings), settings)
    assert spawned == []


def test_a_link_to_another_file_is_another_file(sound: bytes, other: bytes, settings: Settings, tmp_path: Path) -> None:
    """What was verified is the file, not the name: pointing the name elsewhere is found though nothing was written."""
    settings.models_dir.mkdir(parents=True)
    tier = _tier("linked", hashlib.sha256(sound).hexdigest())
    path = settings.models_dir / tier.file
    (tmp_path / "sound").write_bytes(sound)
    (tmp_path / "other").write_bytes(other)
    path.symlink_to(tmp_path / "sound")
    files.ensure(tier, settings)
    path.unlink()
    shutil.copystat(tmp_path / "sound", tmp_path / "other")
    path.symlink_to(tmp_path / "other")
    _refused(tier, settings)
