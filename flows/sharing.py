"""The collection shared among Dask workers, where RUVLLM_COLLECT_WORKERS asks for it (extra `fan-out`).

Dask sends tasks as pickles: whoever reaches its ports runs code there. So workers of this machine are started on the
loopback, and a scheduler elsewhere is spoken to by TLS only (its certificates are Dask's own settings).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from flows.steps import Result
from ruvllm.errors import SettingsError
from ruvllm.learning.shares import Share
from ruvllm.nightly import sharing
from ruvllm.settings import Settings, load_settings

Runner = TaskRunner[PrefectFuture[Any]]

_LOOPBACK = ("tcp://127.0.0.1:", "tcp://[::1]:", "tcp://localhost:")


def dask_runner(settings: Settings) -> Runner:
    """Workers on this machine, ended with the flow, or those of a scheduler elsewhere.

    Raises:
        SettingsError: the extra is not installed, or the scheduler would be spoken to in the clear.
    """
    try:
        make: Callable[..., Runner] = import_module("prefect_dask").DaskTaskRunner
    except ImportError as error:
        raise SettingsError(
            f"RUVLLM_COLLECT_WORKERS: got {settings.collect_workers}, but {error.name} is not installed; "
            "pip install 'ruvllm[fan-out]', or 0 for none"
        ) from error
    address = settings.dask_scheduler
    if not address:
        return make(cluster_kwargs=_here(settings.collect_workers))
    if not address.startswith(("tls://", *_LOOPBACK)):
        raise SettingsError(
            f"RUVLLM_DASK_SCHEDULER: got {address!r}, want tls://HOST:PORT; Dask runs whatever reaches it"
        )
    return make(address=address)


def _here(workers: int) -> dict[str, Any]:
    """One task a worker at a time, on the loopback only: the scheduler's page too, which it does not go without."""
    return {
        "n_workers": workers, "threads_per_worker": 1, "processes": True, "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0", "memory_limit": 0,
    }  # fmt: skip


def shares(settings: Settings, lanes: int | None = None) -> list[Share]:
    """One a worker, each with `lanes`; by default those on one machine share its cores."""
    of = settings.collect_workers
    here = max(1, (os.cpu_count() or 1) // of) if not settings.dask_scheduler else 0
    return [Share(number, of, here if lanes is None else lanes) for number in range(of)]


@task(task_run_name="share-{number}", retries=2, retry_delay_seconds=2, cache_policy=NO_CACHE)
def collect_share(cycle_id: str, budget_s: float, number: int, of: int, lanes: int) -> Result:
    """One share, by whichever worker has it; it reads its own environment for the database and the models."""
    return sharing.collect_share(load_settings(), cycle_id, budget_s, Share(number, of, lanes))


@flow(name="collect-shares")
def collect_shares(cycle_id: str, budget_s: float, lanes: int | None = None) -> list[Result]:
    """All shares at once; waits for the slowest."""
    parts = shares(load_settings(), lanes)
    running = [collect_share.submit(cycle_id, budget_s, part.number, part.of, part.lanes) for part in parts]
    return [each.result() for each in running]


def share_out(settings: Settings, cycle_id: str, budget_s: float, lanes: int | None = None) -> list[Result]:
    """What the workers say of the collection."""
    run = collect_shares.with_options(task_runner=dask_runner(settings))
    found: list[Result] = run(cycle_id, budget_s, lanes)
    return found
