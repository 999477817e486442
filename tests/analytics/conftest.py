"""An analyst's session on a tenant whose answers, nights and memory are known, beside another tenant's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from ruvllm.database import analysts
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import merge
from ruvllm.settings import Settings
from tests.analytics.analytics_rows import add_night, fill


@pytest.fixture
def owner(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def filled(owner: Connection, database: Database, settings: Settings) -> None:
    """60 answers and two nights of tenant `default`, 40 and one of `other`; a memory with a merge and edges."""
    fill(owner, "default", 60)
    fill(owner, "other", 40)
    for night in (1, 2):
        add_night(owner, "default", night, promoted=night == 1)
    add_night(owner, "other", 7, promoted=False)
    memory = Memory(database, EmbeddingAdapter(HashingEncoder()), settings)
    ids = memory.add([NewNode(f"river {i} of country {i % 7}", "Fact", "atlas") for i in range(10)]).ids
    memory.link_all([(ids[0], ids[1], "Cites", 0.5), (ids[2], ids[1], "Follows", 1.0)], "test")
    memory.touch([ids[3]])
    with database.transaction() as connection:
        merge.absorb(connection, ids[4], ids[5], why="the same", by="test")


@pytest.fixture
def session(owner: Connection, database_url: str, filled: None, tmp_path: Path) -> Iterator[Connection]:
    """The analyst `ana_views` of tenant `default`."""
    access = analysts.add(owner, "ana_views", "default", tmp_path / "analysts")
    address = make_conninfo(database_url, user="ana_views", password="", passfile=str(access.password_file))
    with psycopg.connect(address, autocommit=True) as connection:
        yield connection
    analysts.remove(owner, "ana_views", tmp_path / "analysts")
