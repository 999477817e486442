"""What every flow here shares: how a step becomes a task. A step is keyed by cycle and name, so retrying it is safe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from ruvllm.errors import DatabaseError, InferenceError, RegistryError

Result = dict[str, Any]


def _passing(_task: Any, _run: Any, state: Any) -> bool:
    """Only faults that can pass by themselves are tried again; a refusal (a GateError) stays a refusal."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (DatabaseError, InferenceError)) or type(error) is RegistryError


@task(task_run_name="{name}", retries=2, retry_delay_seconds=2, retry_condition_fn=_passing, cache_policy=NO_CACHE)
def step(name: str, cycle_id: str, work: Callable[[], Result]) -> Result:
    """Run one step of a cycle and keep its result as an artifact."""
    logger = get_run_logger()
    logger.info("%s of %s begins", name, cycle_id)
    result = work()
    create_table_artifact(
        key=f"{name}-{cycle_id}", table=[{"what": key, "value": str(value)} for key, value in result.items()]
    )
    logger.info("%s of %s: %s", name, cycle_id, result)
    return result
