from __future__ import annotations

import pytest

from ruvllm.inference.waiting import environment, policy


@pytest.mark.parametrize(
    ("wanted", "cores", "busy", "chosen"),
    [
        ("auto", 2, 0.05, "active"),
        ("auto", 2, 0.6, "passive"),  # beside a busy process spinning threads wait for one another
        ("auto", 1, 0.0, "passive"),  # one core has nobody to wait for
        ("active", 1, 1.0, "active"),
        ("passive", 8, 0.0, "passive"),
    ],
)
def test_spinning_is_chosen_where_the_machine_is_idle(wanted: str, cores: int, busy: float, chosen: str) -> None:
    assert policy(wanted, cores, lambda: busy) == chosen


def test_spinning_has_an_end_and_the_users_own_variables_win() -> None:
    ours = {"PATH": "/bin", "DATABASE_URL": "secret"}
    assert environment(ours, "active") == {"PATH": "/bin", "OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}
    assert environment(ours, "passive") == {"PATH": "/bin", "OMP_WAIT_POLICY": "passive"}
    assert environment({"OMP_WAIT_POLICY": "passive"}, "active") == {"OMP_WAIT_POLICY": "passive"}
