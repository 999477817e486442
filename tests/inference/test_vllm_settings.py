"""RUVLLM_VLLM and the key's file: what they mean, and what their errors teach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import SettingsError
from ruvllm.inference.vllm_settings import key_for, own_key_file, servers
from ruvllm.settings import Settings, load_settings, to_environment

TWO = "lfm2-350m=http://127.0.0.1:8101, http://localhost:8102/ ; lfm2-2.6b=https://gpu.example:443;"


def test_servers_by_tier_in_order(settings: Settings) -> None:
    assert servers(replace(settings, vllm=TWO)) == {
        "lfm2-350m": ("http://127.0.0.1:8101", "http://localhost:8102"),
        "lfm2-2.6b": ("https://gpu.example:443",),
    }
    assert servers(settings) == {}


def test_a_child_process_gets_the_same_servers(settings: Settings) -> None:
    given_ = replace(settings, vllm=TWO, vllm_key_file="/keys/vllm")
    assert load_settings(to_environment(given_)) == given_


@pytest.mark.parametrize(
    ("text", "teaches"),
    [
        ("http://127.0.0.1:8101", 'want "tier=url'),
        ("lfm2-350m", 'want "tier=url'),
        ("lfm2-350m=", "no server for the tier lfm2-350m"),
        ("lfm2-350m=127.0.0.1:8101", "want a URL such as"),
        ("lfm2-350m=ftp://127.0.0.1", "want a URL such as"),
        ("lfm2-350m=http://127.0.0.1:99999", "want http://host:port"),
        ("lfm2-350m=http://10.0.0.7:8101", "want https://"),
        ("lfm2-350m=http://me:pw@127.0.0.1:8101", "more than scheme, host and port"),
        ("lfm2-350m=http://127.0.0.1:8101/v1", "the path is ours to add"),
        ("lfm2-350m=http://127.0.0.1:1,http://127.0.0.1:1", "each once"),
        ("a=http://127.0.0.1:1;a=http://127.0.0.1:2", "the tier a twice"),
    ],
)
def test_errors_teach(settings: Settings, text: str, teaches: str) -> None:
    with pytest.raises(SettingsError, match="RUVLLM_VLLM") as raised:
        servers(replace(settings, vllm=text))
    assert teaches in str(raised.value)
    assert "pw" not in str(raised.value)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_a_settings_error(text: str) -> None:
    try:
        found = servers(Settings(vllm=text))
    except SettingsError:
        return
    assert all(url.startswith(("http://", "https://")) for urls in found.values() for url in urls)


def key_file(path: Path, text: str = "s3cret\n", mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_our_own_key_is_told_to_this_machine_alone(settings: Settings) -> None:
    key_file(own_key_file(settings))
    assert key_for("http://127.0.0.1:8101", settings) == "s3cret"
    assert key_for("https://gpu.example", settings) == ""


def test_a_key_that_the_setting_names_goes_to_every_server(settings: Settings, tmp_path: Path) -> None:
    named = replace(settings, vllm_key_file=str(key_file(tmp_path / "theirs", "other")))
    assert key_for("https://gpu.example", named) == "other"


@pytest.mark.parametrize(
    ("text", "mode", "teaches"),
    [
        ("s3cret", 0o644, "chmod 600"),
        ("", 0o600, "holds no key"),
        ("a b", 0o600, "holds no key"),
        ("ü", 0o600, "cannot"),
    ],
)
def test_a_bad_key_file_is_refused(settings: Settings, tmp_path: Path, text: str, mode: int, teaches: str) -> None:
    path = key_file(tmp_path / "key", text, mode)
    with pytest.raises(SettingsError, match=teaches) as raised:
        key_for("http://127.0.0.1:1", replace(settings, vllm_key_file=str(path)))
    assert "s3cret" not in str(raised.value)


def test_a_missing_key_file_is_named(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="/nowhere/key"):
        key_for("http://127.0.0.1:1", replace(settings, vllm_key_file="/nowhere/key"))
