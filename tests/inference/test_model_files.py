"""Files put together, verified, pulled and resumed; a small file that begins like a model stands for one."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from inference_gguf import beginning

from ruvllm.errors import ModelFileError
from ruvllm.inference import files
from ruvllm.inference.hub import pull
from ruvllm.inference.tiers import Tier, find_tier
from ruvllm.settings import Settings

BODY = beginning() + os.urandom(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


@dataclass
class Hub:
    """What the little hub serves, how much of it before it hangs up, and what it was asked."""

    body: bytes = BODY
    etag: str = '"v1"'
    linked: str = ""
    cut: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        start = self._start(handler, wanted)
        if start is not None and start >= len(self.body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.body)}")
            handler.end_headers()
            return
        body = self.body[start or 0 :]
        handler.send_response(200 if start is None else 206)
        handler.send_header("ETag", self.etag)
        handler.send_header("X-Linked-Etag", f'"{self.linked}"')
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cut])

    def _start(self, handler: BaseHTTPRequestHandler, wanted: str | None) -> int | None:
        if wanted is None or handler.headers.get("If-Range") != self.etag:
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    served = Hub()
    with _serving(served) as url:
        served.url = url
        yield served


@contextmanager
def _serving(hub: Hub) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def tier(settings: Settings) -> Tier:
    return replace(find_tier("350m", replace(settings, quantisation="Q4_K_M")), sha256=SHA)


def test_a_pull_that_broke_off_is_resumed_where_it_was(hub: Hub, tier: Tier, settings: Settings) -> None:
    hub.cut = 100_000
    with pytest.raises(ModelFileError, match=r'after \d+ bytes; run "ruvllm models pull lfm2-350m" to resume'):
        pull(tier, settings, endpoint=hub.url)
    kept = (settings.models_dir / f"{tier.file}.part").stat().st_size
    assert 0 < kept <= 100_000
    hub.cut = None
    seen: list[int] = []
    path = pull(tier, settings, lambda done, total, note="": seen.append(done), endpoint=hub.url)
    assert path.read_bytes() == BODY
    assert hub.asked == [
        ("/LiquidAI/LFM2-350M-GGUF/resolve/main/LFM2-350M-Q4_K_M.gguf", None),
        ("/LiquidAI/LFM2-350M-GGUF/resolve/main/LFM2-350M-Q4_K_M.gguf", f"bytes={kept}-"),
    ]
    assert seen[-1] == len(BODY)
    assert {p.name for p in settings.models_dir.iterdir()} == {
        tier.file,
        f"{tier.file}.busy",
        f"{tier.file}.verified.json",
    }
    pull(tier, settings, endpoint=hub.url)
    assert len(hub.asked) == 2


def test_another_version_at_the_hub_begins_anew(hub: Hub, tier: Tier, settings: Settings) -> None:
    hub.body, hub.cut = os.urandom(200_000), 100_000
    with pytest.raises(ModelFileError, match="to resume"):
        pull(tier, settings, endpoint=hub.url)
    hub.body, hub.etag, hub.cut = BODY, '"v2"', None
    assert pull(tier, settings, endpoint=hub.url).read_bytes() == BODY


def test_a_whole_part_that_never_got_its_name_is_not_pulled_again(hub: Hub, tier: Tier, settings: Settings) -> None:
    hub.cut = 0
    with pytest.raises(ModelFileError):
        pull(tier, settings, endpoint=hub.url)
    (settings.models_dir / f"{tier.file}.part").write_bytes(BODY)
    assert pull(tier, settings, endpoint=hub.url).read_bytes() == BODY
    assert hub.asked[-1][1] == f"bytes={len(BODY)}-"


def test_an_altered_body_is_refused_and_leaves_nothing(hub: Hub, tier: Tier, settings: Settings) -> None:
    hub.body = b"GGUF" + bytes(300_000)
    with pytest.raises(ModelFileError, match=f"expected {SHA}"):
        pull(tier, settings, endpoint=hub.url)
    assert {p.name for p in settings.models_dir.iterdir()} == {f"{tier.file}.busy"}


def test_what_the_hub_announces_is_checked_where_nothing_is_pinned(hub: Hub, tier: Tier, settings: Settings) -> None:
    hub.linked = "0" * 64
    with pytest.raises(ModelFileError, match=f"sha256 is {SHA}, expected 000"):
        pull(replace(tier, sha256=""), settings, endpoint=hub.url)


def test_an_unpinned_file_is_recorded_and_must_match_ever_after(hub: Hub, tier: Tier, settings: Settings) -> None:
    tier, notes = replace(tier, sha256=""), list[str]()
    path = pull(tier, settings, lambda done, total, note="": notes.append(note), endpoint=hub.url)
    assert f"its sha256 {SHA} is recorded" in notes[-1]
    assert files.ensure(tier, settings) == path
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(ModelFileError, match=f'expected {SHA}; run "ruvllm models remove lfm2-350m" and'):
        files.ensure(tier, settings)
    freed = files.remove(tier, settings)
    assert freed >= len(BODY)
    assert files.size(tier, settings) == 0
    with pytest.raises(ModelFileError, match="ruvllm models pull"):
        files.ensure(tier, settings)


def test_no_such_file_at_the_hub(hub: Hub, tier: Tier, settings: Settings) -> None:
    with pytest.raises(ModelFileError, match="http"):
        pull(tier, settings, endpoint="http://127.0.0.1:1")


def test_two_pulls_do_not_write_into_one_another(hub: Hub, tier: Tier, settings: Settings) -> None:
    with files.alone(settings.models_dir / tier.file), pytest.raises(ModelFileError, match="another process"):
        pull(tier, settings, endpoint=hub.url)


@pytest.mark.parametrize("change", ["truncated", "altered"])
def test_a_changed_file_is_refused_before_anything_parses_it(
    hub: Hub, tier: Tier, settings: Settings, change: str
) -> None:
    path = pull(tier, settings, endpoint=hub.url)
    path.write_bytes(BODY[:-10] if change == "truncated" else b"GGUF" + bytes(300_000))
    with pytest.raises(ModelFileError, match=f"expected {SHA}"):
        files.ensure(tier, settings)


def test_a_verified_file_is_not_read_again_unless_forced(
    hub: Hub, tier: Tier, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull(tier, settings, endpoint=hub.url)
    read: list[Path] = []
    really = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda path, progress: read.append(path) or really(path, progress))
    files.ensure(tier, settings)
    assert read == []
    assert files.verify(tier, settings, force=True) == SHA
    os.utime(path)
    files.ensure(tier, settings)
    assert read == [path, path]


def test_a_half_written_note_is_as_good_as_none(hub: Hub, tier: Tier, settings: Settings) -> None:
    pull(tier, settings, endpoint=hub.url)
    note = settings.models_dir / f"{tier.file}.verified.json"
    note.write_text(note.read_text()[:20])
    files.ensure(tier, settings)
    assert json.loads(note.read_text())["sha256"] == SHA


def test_a_write_in_place_that_hides_its_time_is_found(hub: Hub, tier: Tier, settings: Settings) -> None:
    path = pull(tier, settings, endpoint=hub.url)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(200_000)
        file.write(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    with pytest.raises(ModelFileError, match=f"expected {SHA}"):
        files.ensure(tier, settings)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    hub: Hub, tier: Tier, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(tier, settings, endpoint=hub.url)
    really = files.hash_file

    def disturbed(path: Path, progress: object) -> str:
        got = really(path)
        path.write_bytes(BODY[:-1] + b"x")  # after its last byte was read
        return got

    monkeypatch.setattr(files, "hash_file", disturbed)
    with pytest.raises(ModelFileError, match="changed while it was read"):
        files.verify(tier, settings, force=True)
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match=f"expected {SHA}"):
        files.ensure(tier, settings)


def test_what_the_hub_gives_must_be_the_model_that_was_asked_for(hub: Hub, tier: Tier, settings: Settings) -> None:
    hub.body = beginning("qwen3", 28, 1024) + bytes(1000)
    for _ in range(2):  # nor does it become one by being there
        with pytest.raises(ModelFileError, match="is qwen3 with 28 layers of 1024, want lfm2"):
            pull(replace(tier, sha256=""), settings, endpoint=hub.url)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (beginning("llama", 30, 576), "is llama with 30 layers of 576, want lfm2 with 16 layers of 1024 for lfm2-350m"),
        (beginning("lfm2", 16, 1536), "is lfm2 with 16 layers of 1536, want lfm2 with 16 layers of 1024"),
        (beginning("lfm2", 16, 1024, version=9), "header cannot be read"),
        (beginning()[:60], "header cannot be read"),
        (b"ggml" + beginning()[4:], "begins with b'ggml'"),
    ],
    ids=["architecture", "width", "version", "cut off", "magic"],
)
def test_the_right_hash_of_the_wrong_model_is_refused(tier: Tier, settings: Settings, body: bytes, said: str) -> None:
    settings.models_dir.mkdir(parents=True)
    (settings.models_dir / tier.file).write_bytes(body)
    with pytest.raises(ModelFileError, match=said):
        files.ensure(replace(tier, sha256=hashlib.sha256(body).hexdigest()), settings)


@pytest.fixture
def parts(tier: Tier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tier:
    """The same file as two packages carry it."""
    for name, piece in (("ruvllm_part_a", BODY[:1000]), ("ruvllm_part_b", BODY[1000:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('must not be imported')")
        (tmp_path / name / "piece").write_bytes(piece)
    monkeypatch.syspath_prepend(str(tmp_path))
    return replace(tier, repository="", packages=("ruvllm_part_a", "ruvllm_part_b"), parts=("piece", "piece"))


def test_parts_are_put_together_without_importing_their_packages(parts: Tier, settings: Settings) -> None:
    left_by_a_kill = settings.models_dir / f"{parts.file}.assembling"
    left_by_a_kill.parent.mkdir(parents=True)
    left_by_a_kill.write_bytes(b"half of it")
    assert files.ensure(parts, settings).read_bytes() == BODY
    assert not left_by_a_kill.exists()


def test_altered_parts_make_no_file(parts: Tier, settings: Settings) -> None:
    with pytest.raises(ModelFileError, match="install the extra `demo` anew"):
        files.ensure(replace(parts, sha256="0" * 64), settings)
    assert {p.name for p in settings.models_dir.iterdir()} == {f"{parts.file}.busy"}


def test_a_missing_package_names_the_extra(parts: Tier, settings: Settings) -> None:
    with pytest.raises(ModelFileError, match="install the extra `demo`"):
        files.ensure(replace(parts, packages=("ruvllm_no_such_package", "ruvllm_part_b")), settings)


def test_a_full_disk_leaves_nothing_half_written(
    parts: Tier, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(ModelFileError, match="No space left on device; make room there"):
        files.ensure(parts, settings)
    assert {p.name for p in settings.models_dir.iterdir()} == {f"{parts.file}.busy"}
