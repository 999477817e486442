"""A gateway around an answerer that answers at once: what is tested is HTTP, admission and following the champion."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from ruvllm.database.pool import Database
from ruvllm.router.store import BundleStore
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings
from tests.serving.gateway import client_of, serving


@pytest.fixture
def answerer() -> FakeAnswerer:
    return FakeAnswerer()


@pytest.fixture
def away() -> Database:
    """A Postgres that is not there."""
    return Database("postgresql://nobody@127.0.0.1:9/none")


@pytest.fixture
def service(answerer: FakeAnswerer, away: Database, settings: Settings) -> GatewayService:
    return GatewayService(answerer, away, BundleStore(settings.router_dir), settings)


@pytest.fixture
def url(settings: Settings, service: GatewayService) -> Iterator[str]:
    with serving(settings, service) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with client_of(url) as client:
        yield client
