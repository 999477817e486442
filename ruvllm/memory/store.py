"""Memory: nodes and edges of one tenant, found by meaning. Knows nothing of models that answer, of flows or HTTP.

What is in the way of writing (duplicates, conflicts) is in writeback.py and dedup.py; the SQL of rows is in rows.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from psycopg import Connection
from psycopg.sql import SQL

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import DatabaseError, EncoderMismatchError, InputError
from ruvllm.memory import edges, hnsw, merge, rows
from ruvllm.memory.conflict import raised_trust
from ruvllm.memory.records import AddReport, Hit, NewNode, Node, Vector, WriteBack
from ruvllm.memory.rows import NODE, Known, Ready, content_hash
from ruvllm.progress import Progress, silent
from ruvllm.settings import Settings
from ruvllm.text import clean_text

if TYPE_CHECKING:
    from ruvllm.memory.dedup import MaintainReport

_BATCH = 64  # nodes embedded and written in one transaction: what a kill can cost

_SEARCH = SQL("""
    SELECT {node}, -(n.embedding <#> %(vector)s), n.embedding
    FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    WHERE n.archived_at IS NULL AND n.kind <> ALL(%(excluded)s)
      AND (n.trust <> 'untrusted' OR t.writer = %(reader)s)
    ORDER BY n.embedding <#> %(vector)s LIMIT %(k)s
""").format(node=NODE)

_COUNTS = """
    SELECT kind, count(*) FROM memory.nodes WHERE archived_at IS NULL GROUP BY kind
    UNION ALL SELECT 'nodes', count(*) FROM memory.nodes WHERE archived_at IS NULL
    UNION ALL SELECT 'archived', count(*) FROM memory.nodes WHERE archived_at IS NOT NULL
    UNION ALL SELECT 'edges', count(*) FROM memory.edges
"""


class Memory:
    """What the system knows, for the tenant of `database`. Safe to share between threads."""

    def __init__(self, database: Database, embedder: EmbeddingAdapter, settings: Settings) -> None:
        """
        Raises:
            EncoderMismatchError: the stored vectors are another encoder's.
            DatabaseError: Postgres is out of reach or not migrated.
        """
        self.database, self.embedder, self.settings = database, embedder, settings
        with database.transaction() as connection:
            _check_encoder(connection, embedder)
            self._size = _estimated_size(connection)

    def add(self, nodes: Sequence[NewNode], progress: Progress = silent) -> AddReport:
        """Write `nodes`; one whose kind and text a live row holds already, or took in by a merge, is skipped.

        Batches of 64, a transaction each: after a kill, adding the same nodes again writes the missing ones.

        Raises:
            InputError: a text is unacceptable, or a given embedding is no unit vector of the encoder's dimension.
        """
        ids: list[int] = []
        written = 0
        for start in range(0, len(nodes), _BATCH):
            batch = [self._cleaned(node) for node in nodes[start : start + _BATCH]]
            batch_ids, batch_written = self._add_batch(batch)
            ids += batch_ids
            written += batch_written
            progress(len(ids), len(nodes))
        return AddReport(tuple(ids), written, len(ids) - written)

    def search(self, vector: Vector, k: int, exclude_kinds: Sequence[str] = (), reader: str = "") -> list[Hit]:
        """The `k` live nodes nearest to the unit vector `vector` (d,), nearest first.

        Untrusted nodes are found only by `reader`, who wrote them.
        """
        if not 1 <= k <= hnsw.MAX_EF_SEARCH:
            raise InputError(f"k: got {k}, want 1 to {hnsw.MAX_EF_SEARCH}")
        self._check_vector(vector, "vector")
        values = {"vector": rows.half(vector), "k": k, "excluded": list(exclude_kinds), "reader": reader}
        with self.database.transaction() as connection:
            rows.by_index(connection, hnsw.ef_search(k, self._size))
            found = connection.cursor(binary=True).execute(_SEARCH, values)
            return [rows.hit_from_row(row) for row in found]

    def search_text(self, text: str, k: int, exclude_kinds: Sequence[str] = (), reader: str = "") -> list[Hit]:
        """The `k` live nodes nearest in meaning to the question `text`."""
        return self.search(self.embedder.embed_one(clean_text(text)), k, exclude_kinds, reader)

    def get(self, ids: Sequence[int]) -> list[Node]:
        """In the order of `ids`, archived ones too; unknown ids are left out."""
        with self.database.transaction() as connection:
            return rows.get(connection, ids)

    def touch(self, ids: Sequence[int]) -> None:
        """Count one use of each node."""
        with self.database.transaction() as connection:
            merge.touch(connection, list(ids))

    def link(self, src: int, dst: int, rel: str, weight: float, created_by: str) -> None:
        """Write one edge; one that is there is left as it is."""
        self.link_all([(src, dst, rel, weight)], created_by)

    def link_all(self, new: Sequence[edges.Edge], created_by: str) -> int:
        """Write edges (src, dst, rel, weight); returns how many were not there."""
        with self.database.transaction() as connection:
            return edges.link(connection, new, created_by)

    def neighbours(self, ids: Sequence[int], hops: int = 2, limit: int = 256, reader: str = "") -> list[edges.Edge]:
        """Edges (src, dst, rel, weight) within `hops` of `ids` through live nodes, at most `limit`, nearest first."""
        with self.database.transaction() as connection:
            return edges.neighbours(connection, ids, edges.Walk(hops=hops, limit=limit, reader=reader))

    def counts(self) -> dict[str, int]:
        """Live nodes in all ("nodes") and by kind, archived nodes, edges."""
        with self.database.transaction() as connection:
            return {str(name): int(number) for name, number in connection.execute(_COUNTS)}

    def write_back(
        self,
        question: str,
        answer: str,
        quality: float | None,
        quality_source: str | None,
        writer: str = "",
        domain: str = "",
        derived_from: Sequence[int] = (),
        connection: Connection | None = None,
    ) -> WriteBack:
        """Keep a good answer as a Fact; what is there already is merged by the conflict rule.

        With `connection` it happens in the caller's transaction, so together with the mark that it was done.
        """
        from ruvllm.memory.writeback import Answered, write_back

        answered = Answered(question, answer, quality, quality_source, writer, domain, tuple(derived_from))
        with self._joined(connection) as joined:
            return write_back(joined, self.embedder, self.settings, answered)

    def maintain(self, progress: Progress = silent, everything: bool = False) -> MaintainReport:
        """Merge exact and near duplicates among nodes that came since the last time, or among all."""
        from ruvllm.memory.dedup import maintain

        return maintain(self.database, self.settings, progress, everything)

    def _cleaned(self, node: NewNode) -> NewNode:
        if node.embedding is not None:
            self._check_vector(node.embedding, "embedding")
        return replace(node, text=clean_text(node.text, f"text of a {node.kind} from {node.source or 'no source'}"))

    def _add_batch(self, batch: Sequence[NewNode]) -> tuple[list[int], int]:
        """Ids in order and how many were written; the embedding is done between transactions."""
        hashes = [content_hash(node.kind, node.text) for node in batch]
        with self.database.transaction() as connection:
            known = rows.live(connection, hashes)
        fresh = self._ready({h: n for h, n in zip(hashes, batch, strict=True) if h not in known})
        with self.database.transaction() as connection:
            written = sum(id is not None for id in rows.insert(connection, fresh))
            known = rows.live(connection, hashes)
            _raise_trust(connection, [(known[h], node) for h, node in zip(hashes, batch, strict=True)])
        self._size += written
        return [known[h].id for h in hashes], written

    def _ready(self, fresh: dict[bytes, NewNode]) -> list[Ready]:
        bare = [h for h, node in fresh.items() if node.embedding is None]
        vectors = dict(zip(bare, self.embedder.embed([fresh[h].text for h in bare]), strict=True))
        return [Ready(n, h, vectors[h] if n.embedding is None else n.embedding) for h, n in fresh.items()]

    def _check_vector(self, vector: Vector, name: str) -> None:
        if vector.shape != (self.embedder.dimension,):
            raise InputError(f"{name}: got shape {vector.shape}, want ({self.embedder.dimension},)")
        length = float(np.linalg.norm(vector))
        if not 0.98 <= length <= 1.02:  # NaN fails too
            raise InputError(f"{name}: got length {length:.3g}, want a unit vector")

    @contextmanager
    def _joined(self, connection: Connection | None) -> Iterator[Connection]:
        with nullcontext(connection) if connection is not None else self.database.transaction() as joined:
            yield joined


def _check_encoder(connection: Connection, embedder: EmbeddingAdapter) -> None:
    row = connection.execute("SELECT id, dimension FROM memory.encoder").fetchone()
    if row is None:
        raise DatabaseError('memory.encoder: has no row, so the schema is not complete; run "ruvllm doctor"')
    if tuple(row) != (embedder.id, embedder.dimension):
        raise EncoderMismatchError(
            f"memory holds vectors of encoder {row[0]} ({row[1]} dimensions), the encoder in use is {embedder.id}"
            f" ({embedder.dimension} dimensions); choose the former with RUVLLM_ENCODER, or use an empty database"
        )


def _estimated_size(connection: Connection) -> int:
    """Rows by the planner's estimate: it only chooses a row of the HNSW table."""
    row = connection.execute("SELECT reltuples FROM pg_class WHERE oid = 'memory.nodes'::regclass").fetchone()
    return max(0, int(row[0])) if row else 0


def _raise_trust(connection: Connection, pairs: Sequence[tuple[Known, NewNode]]) -> None:
    for known, node in pairs:
        trust = raised_trust(known.trust, known.writer, node.trust, node.writer)
        if trust != known.trust:
            connection.execute("UPDATE memory.nodes SET trust = %s WHERE id = %s", (trust, known.id))
