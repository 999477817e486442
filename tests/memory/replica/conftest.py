"""A replica that follows only when it is told to, over a real Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from replica_nodes import ALONE, Written, insert, node, units

from ruvllm.database.pool import Database
from ruvllm.memory.replica import Replica, ReplicaOptions


@pytest.fixture
def written(database: Database) -> Written:
    """300 plain nodes."""
    vectors = units(300)
    with database.transaction() as connection:
        ids = insert(connection, [node(vector) for vector in vectors])
    return Written(database, vectors, ids)


@pytest.fixture
def open_replica(database: Database, tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    """Opens a replica of the test's database under its own folder and closes it afterwards."""
    with ExitStack() as stack:

        def opened(options: ReplicaOptions = ALONE, of: Database = database) -> Replica:
            replica = Replica.open(of, tmp_path / "replica", options)
            stack.callback(replica.close)
            return replica

        yield opened
