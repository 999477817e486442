"""A tenant that is opened in the middle of a swap decides with the new router from its first request on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ruvllm.database.pool import Database
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.keys import Caller
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings


def runtime(folder: Path, seed: int) -> RouterRuntime:
    return RouterRuntime.load(folder, write_random_bundle(folder, version=f"router-{seed}", seed=seed))


def test_no_request_of_a_new_tenant_sees_the_router_from_before(
    away: Database, settings: Settings, tmp_path: Path
) -> None:
    before, after = runtime(tmp_path / "1", 1), runtime(tmp_path / "2", 2)

    class Late(FakeAnswerer):
        def use_router(self, runtime: RouterRuntime | None) -> None:
            if not self.router_version:  # the swap goes through between the look at the router and its use
                self.router_version = before.version
                service._use(after)
            super().use_router(runtime)

    service = GatewayService(
        FakeAnswerer(), away, BundleStore(settings.router_dir), settings, make=lambda tenant: Late()
    )
    service._use(before)
    caller = Caller("k", "acme", frozenset({"ask"}), service.door.caller(None).limits)
    assert asyncio.run(service.run(caller, lambda of: of.router_version)) == "router-2"
    assert {answerer.router_version for answerer in service.tenants.opened} == {"router-2"}
