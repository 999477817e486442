"""How OpenMP's threads wait for one another in a model's process, chosen when it starts; knows nothing of models.

Spinning gives the most tokens on an idle machine and collapses beside a busy process (facts: 51 tokens/s idle, 2 to 6
beside one; asleep 30 and 27). Spinning has an end here (GOMP_SPINCOUNT, some milliseconds): libgomp's own `active`
keeps a core busy for a minute after an answer, which was measured as 1.6 CPU-seconds of the next 3 with no request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ruvllm.inference.threads import cores

POLICIES = ("auto", "active", "passive")
_TUNING = ("OMP_", "GOMP_", "GGML_", "LLAMA_")
# A parser of model files needs no password: the child gets the variables that begin so, and no others.
_PASSED = ("PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "PYTHON", *_TUNING)
_WAITS = {
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "active": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"},
}
_IDLE_SHARE = 0.25  # of the cores may be busy with other work
_LOOK_S = 0.1


def policy(wanted: str, available: int | None = None, busy: Callable[[], float] | None = None) -> str:
    """`active` or `passive`; auto is active where there is more than one core and little else runs now."""
    if wanted != "auto":
        return wanted
    if (cores() if available is None else available) < 2:
        return "passive"
    return "active" if (busy or busy_share)() <= _IDLE_SHARE else "passive"


def busy_share() -> float:
    """Share of all cores that anything uses, over a tenth of a second."""
    import psutil

    return float(psutil.cpu_percent(interval=_LOOK_S)) / 100


def environment(ours: Mapping[str, str], how: str) -> dict[str, str]:
    """The child's variables. What the user set of OpenMP's waiting wins, whole."""
    passed = {k: v for k, v in ours.items() if k.startswith(_PASSED)}
    own = {} if "OMP_WAIT_POLICY" in passed or "GOMP_SPINCOUNT" in passed else _WAITS[how]
    return {**own, **passed}
