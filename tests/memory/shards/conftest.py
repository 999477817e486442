"""Four shards and a coordinator: databases of the test run's one server, which postgres_fdw cannot tell from four."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest

from ruvllm.database.dsn import with_database
from ruvllm.memory.shards import Shard, ShardSet, create, open_tenant
from tests.memory.shards.filled import NAMES, PER_TENANT, TENANTS, Filled, fill, units

_numbers = itertools.count()


@pytest.fixture(scope="module")
def shard_set(template: str) -> Iterator[ShardSet]:
    admin, number = with_database(template, "postgres"), next(_numbers)
    names = [f"shards_{number}_{name}" for name in ("coordinator", *NAMES)]
    with psycopg.connect(admin, autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
    dsns = [with_database(template, name) for name in names]
    made = ShardSet(dsns[0], tuple(Shard(n, d) for n, d in zip(NAMES, dsns[1:], strict=True)))
    create(made, "test-encoder", 384)
    yield made
    with psycopg.connect(admin, autocommit=True) as connection:
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        roles = connection.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^ruvllm_[abcd]_'").fetchall()
        for (role,) in roles:
            connection.execute(f"DROP ROLE {role}")


@pytest.fixture(scope="module")
def filled(shard_set: ShardSet) -> Filled:
    """Both tenants' nodes, searchable over all shards."""
    vectors = {tenant: units(seed, PER_TENANT) for seed, tenant in enumerate(TENANTS)}
    texts = {tenant: [f"{tenant} {i}" for i in range(PER_TENANT)] for tenant in TENANTS}
    for tenant in TENANTS:
        fill(shard_set, tenant, texts[tenant], vectors[tenant])
        open_tenant(shard_set, tenant)
    return Filled(shard_set, vectors, texts)
