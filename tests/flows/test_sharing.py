"""A collection that Dask workers share: every question has one worker, and what they say adds up."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.sharing import dask_runner, share_out, shares
from ruvllm.errors import LearningError, SettingsError
from ruvllm.learning.oracle import OracleReport
from ruvllm.learning.shares import WHOLE, Share
from ruvllm.nightly import night, sharing
from ruvllm.settings import Settings, load_settings


@given(st.text(max_size=40), st.integers(1, 9))
def test_every_question_has_one_share(key: str, of: int) -> None:
    assert sum(Share(number, of).has(key) for number in range(of)) == 1
    assert WHOLE.has(key)


def test_shares_are_of_about_one_size() -> None:
    keys = [f"question-{n}" for n in range(4000)]
    sizes = [sum(Share(number, 4).has(key) for key in keys) for number in range(4)]
    assert min(sizes) > 900


@pytest.mark.parametrize(("number", "of", "lanes"), [(2, 2, 0), (-1, 2, 0), (0, 0, 0), (0, 1, -1)])
def test_a_share_that_there_is_not_is_refused(number: int, of: int, lanes: int) -> None:
    with pytest.raises(LearningError, match=f"share {number} of {of}"):
        Share(number, of, lanes)


def test_reports_add_up_and_the_slowest_tells_the_time() -> None:
    one = OracleReport(3, 12, 1, 10.0, 8.0, 16.0, "gold only", {"no gold": 1})
    two = OracleReport(5, 20, 0, 30.0, 12.0, 24.0, "gold only", {"no gold": 2, "no score": 1})
    assert sharing.together([one, two]) == OracleReport(
        8, 32, 1, 30.0, 20.0, 40.0, "gold only", {"no gold": 3, "no score": 1}
    )
    with pytest.raises(LearningError, match="no worker reported"):
        sharing.together([])


def test_workers_of_one_machine_share_its_cores(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    here = replace(settings, collect_workers=3)
    assert [part.lanes for part in shares(here)] == [2, 2, 2]
    assert [part.lanes for part in shares(replace(here, dask_scheduler="tls://many:8786"))] == [0, 0, 0]


def test_without_the_extra_the_way_out_is_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(SettingsError, match=r"RUVLLM_COLLECT_WORKERS.*pip install 'ruvllm\[fan-out\]'"):
        dask_runner(replace(settings, collect_workers=2))


def test_a_scheduler_in_the_clear_is_refused(settings: Settings) -> None:
    pytest.importorskip("prefect_dask", reason="extra fan-out is not installed")
    with pytest.raises(SettingsError, match="want tls://"):
        dask_runner(replace(settings, collect_workers=2, dask_scheduler="tcp://10.0.0.7:8786"))


def test_two_workers_here_reach_database_models_and_server(
    prefect_client: str, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """Nothing is enrolled, so the models themselves stay unloaded; tests/benchmarks/night/fan_out.py lets them work."""
    pytest.importorskip("prefect_dask", reason="extra fan-out is not installed")
    for name, value in {
        "DATABASE_URL": empty_database_url, "RUVLLM_STATE_DIR": str(tmp_path / "state"), "RUVLLM_LADDER": "packaged",
        "RUVLLM_ACCEPT_GEMMA_TERMS": "true", "RUVLLM_COLLECT_WORKERS": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    settings = load_settings()
    found = share_out(settings, night.begin(settings), 60.0)
    assert [(each["queries"], each["remaining"]) for each in found] == [(0, 0), (0, 0)]
    assert all("gold" in each["labels"] for each in found)
