"""Weekly: upkeep of indexes and of the registry, and a look at every dependency. Not part of a night."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.steps import Result
from ruvllm.nightly import weekly
from ruvllm.settings import load_settings


@flow(name="maintain-weekly")
def maintain_weekly() -> Result:
    """Indexes kept fit; old versions archived and their workspaces removed, never the champion's ancestors."""
    result = weekly.maintain(load_settings())
    get_run_logger().info("maintain-weekly: %s", result)
    return result


@flow(name="health")
def health() -> Result:
    """Every check of `ruvllm doctor`; fails where one is wrong, and so tells whoever watches failed runs."""
    checks = weekly.health(load_settings())
    create_table_artifact(key="health", table=checks)
    wrong = [check["name"] for check in checks if not check["ok"]]
    if wrong:
        raise RuntimeError(f"health: {', '.join(wrong)} is wrong; the artifact of this run says how to mend it")
    return {"checks": len(checks)}
