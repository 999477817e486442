"""Health fails where a check is wrong, so that its alarm rings; steps are tried again where that helps."""

from __future__ import annotations

import pytest
from prefect import flow
from prefect.exceptions import ParameterTypeError

from flows.refine import refine
from flows.steps import step
from flows.weekly import health
from ruvllm.errors import GateError, LearningError, RegistryError
from ruvllm.nightly import refining, weekly


def test_health_fails_and_names_what_is_wrong(prefect_client, monkeypatch):
    good = {"name": "postgres", "ok": True, "detail": "18.6", "mend": ""}
    monkeypatch.setattr(weekly, "health", lambda _: [good])
    assert health() == {"checks": 1}
    bad = {"name": "models", "ok": False, "detail": "hash differs", "mend": "ruvllm models pull"}
    monkeypatch.setattr(weekly, "health", lambda _: [good, bad])
    with pytest.raises(RuntimeError, match="health: models is wrong"):
        health()


@pytest.mark.parametrize(
    ("error", "tries"),
    [(RegistryError("MLflow is away"), 3), (GateError("a gate failed"), 1), (LearningError("3 rows"), 1)],
)
def test_what_can_pass_by_itself_is_tried_again(prefect_client, error, tries):
    """MLflow comes back; a gate that failed and a snapshot that is too small do not change by themselves."""
    calls = []

    def work():
        calls.append(1)
        raise error

    @flow(name="one-step")
    def one_step():
        step.with_options(retry_delay_seconds=0)("propose", "night-0001-test", work)

    with pytest.raises(type(error)):
        one_step()
    assert len(calls) == tries


def test_refinement_waits_for_a_first_champion(prefect_client, empty_database_url, tmp_path, monkeypatch):
    """An installation whose first night is still to come is not alarmed every hour."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    assert refine() == {"refined": False, "why": "no router was promoted yet"}


def test_refinement_passes_on_who_approves_small_changes(prefect_client, monkeypatch):
    monkeypatch.setattr(refining, "refine_where_served", lambda _, every, small: {"every": every, "small": small})
    assert refine(50)["small"] is None
    assert refine(50, "night-watch", 0.1) == {"every": 50, "small": refining.Small("night-watch", 0.1)}
    with pytest.raises(ParameterTypeError):
        refine.validate_parameters({"most_changed": 2.0})
