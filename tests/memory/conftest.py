"""A memory in a fresh database, with the deterministic test encoder."""

import pytest

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings


@pytest.fixture
def memory(database: Database, settings: Settings) -> Memory:
    return Memory(database, EmbeddingAdapter(HashingEncoder()), settings)
