"""Memory: nodes and edges of one tenant, found by meaning. Knows nothing of models that answer, of flows or HTTP.

What is in the way of writing (duplicates, conflicts) is in writeback.py and dedup.py; the SQL of rows is in rows.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import DatabaseError, EncoderMismatchError, InputError
from ruvllm.memory import contract, edges, rows
from ruvllm.memory.filters import Filter
from ruvllm.memory.likeness.conflict import raised_trust
from ruvllm.memory.records import AddReport, Found, Hit, Neighbourhood, NewNode, Node, Vector, Walk, WriteBack
from ruvllm.memory.retrieval.rank import CANDIDATES, Ranking
from ruvllm.memory.retrieval.reading import Asked, Reader, ReadingState
from ruvllm.memory.retrieval.search import MAX_K
from ruvllm.memory.rows import Known, Ready, content_hash
from ruvllm.memory.tidy import archive, merge
from ruvllm.progress import Progress, silent
from ruvllm.settings import Settings
from ruvllm.text import clean_text

if TYPE_CHECKING:
    from ruvllm.memory.replica import Replica
    from ruvllm.memory.tidy.dedup import MaintainReport

BY_SIMILARITY = Ranking()
TWO_HOPS = Walk()
_BATCH = 64  # nodes embedded and written in one transaction: what a kill can cost

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
            ContractError: the database is not as searches need it; the message has the mend.
            DatabaseError: Postgres is out of reach or not migrated.
        """
        self.database, self.embedder, self.settings = database, embedder, settings
        with database.transaction() as connection:
            _check_encoder(connection, embedder)
            contract.check(connection)
            self._reader = Reader(database, _estimated_size(connection))

    def add(self, nodes: Sequence[NewNode], progress: Progress = silent) -> AddReport:
        """Write `nodes`; one whose kind and text a live row holds already, or took in by a merge, is skipped.

        One that was archived for want of use lives again, and is skipped too.

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
        return AddReport(tuple(ids), written, len(ids) - written, self._wrote() if ids else 0)

    def search(
        self,
        vector: Vector,
        k: int,
        exclude_kinds: Sequence[str] = (),
        reader: str = "",
        *,
        filter: Filter | None = None,
        ef: int | None = None,
        budget_ms: float | None = None,
        exact: bool = False,
        ranking: Ranking = BY_SIMILARITY,
        token: int = 0,
    ) -> list[Hit]:
        """The `k` live nodes nearest to the unit vector `vector` (d,), nearest first; k whenever so many exist.

        Untrusted nodes are found only by `reader`, who wrote them.

        Args:
            k: 1 to 1000.
            filter: which nodes may be found; or `exclude_kinds` and `reader` alone.
            ef: candidates kept on the way; by default what `budget_ms` buys, else what the corpus size asks for.
            exact: compare every node instead of walking the index.
            ranking: fresh and often used nodes first, as far as it says.
            token: of a write (AddReport.token) that must be seen; this memory's own are.

        Raises:
            InputError: `vector`, `k` or `ef` is unacceptable.
        """
        self._check_vector(vector, "vector")
        asked = Asked(k, _filter(filter, exclude_kinds, reader), ef, budget_ms, exact, token)
        if ranking.plain:
            return self._reader.hits(vector, asked)
        deep = replace(asked, k=min(k * CANDIDATES, MAX_K))
        found = self._reader.reranked(self._reader.found(vector, deep), ranking, k)
        return self._in_cosines(found, vector)

    def search_text(
        self, text: str, k: int, exclude_kinds: Sequence[str] = (), reader: str = "", *, filter: Filter | None = None
    ) -> list[Hit]:
        """The `k` live nodes nearest in meaning to the question `text`."""
        return self.search(self._embedded(text), k, exclude_kinds, reader, filter=filter)

    def search_words(self, text: str, k: int, filter: Filter | None = None, token: int = 0) -> list[Hit]:
        """Up to `k` live nodes that share a word with `text`, the best first; similarities are scores over 0."""
        asked = Asked(k, filter or Filter(), token=token)
        return self._reader.nodes_of(self._reader.words(clean_text(text), asked))

    def find(self, vector: Vector, k: int, filter: Filter | None = None, token: int = 0) -> Found:
        """`search` without texts and vectors: ids and similarities, nearest first."""
        self._check_vector(vector, "vector")
        return self._reader.found(vector, Asked(k, filter or Filter(), token=token))

    def find_words(self, text: str, k: int, filter: Filter | None = None, token: int = 0) -> Found:
        """`search_words` without texts and vectors: ids and scores, the best first."""
        return self._reader.words(clean_text(text), Asked(k, filter or Filter(), token=token))

    def hybrid(
        self,
        text: str,
        k: int,
        filter: Filter | None = None,
        vector: Vector | None = None,
        ranking: Ranking = BY_SIMILARITY,
        token: int = 0,
    ) -> list[Hit]:
        """The `k` best by meaning and by words together (reciprocal-rank fusion), the best first.

        Similarities are still those of meaning, so they need not fall. `vector` (d,) where `text` is embedded already.
        """
        text = clean_text(text)
        vector = self.embedder.embed_one(text) if vector is None else vector
        self._check_vector(vector, "vector")
        asked = Asked(k if ranking.plain else min(k * CANDIDATES, MAX_K), filter or Filter(), token=token)
        found = self._reader.hybrid(text, vector, asked)
        return self._in_cosines(found if ranking.plain else self._reader.reranked(found, ranking, k), vector)

    def concept_first(self, vector: Vector, k: int, filter: Filter | None = None) -> list[Hit]:
        """The `k` best of a plain search fused with the members of the concepts nearest to `vector` (d,)."""
        self._check_vector(vector, "vector")
        return self._in_cosines(self._reader.concept_first(vector, Asked(k, filter or Filter())), vector)

    def search_batch(
        self, vectors: Vector, k: int, filter: Filter | None = None, ef: int | None = None, exact: bool = False
    ) -> list[Found]:
        """`search` of each row of `vectors` (n, d), without texts: ids and similarities."""
        if vectors.ndim != 2:
            raise InputError(f"vectors: got shape {vectors.shape}, want (n, {self.embedder.dimension})")
        for i, vector in enumerate(vectors):
            self._check_vector(vector, f"vector {i}")
        return self._reader.batch(vectors, Asked(k, filter or Filter(), ef, exact=exact)) if len(vectors) else []

    def walk(self, seeds: Sequence[int], walk: Walk = TWO_HOPS, token: int = 0) -> Neighbourhood:
        """What is reached from the nodes `seeds` over edges; `Walk` says how."""
        return self._reader.walk(seeds, walk, token)

    def vectors(self, ids: Sequence[int]) -> Vector:
        """(n, d) vectors of the nodes `ids`, in their order.

        Raises:
            InputError: a node is not there.
        """
        try:
            return self._reader.vectors(ids, self.embedder.dimension)
        except KeyError as error:
            raise InputError(f"node {error.args[0]}: memory holds no such node") from error

    def use_replica(self, replica: Replica | None) -> None:
        """Read through `replica` from now on, and through Postgres where it cannot answer; its owner closes it."""
        self._reader.use(replica)

    @property
    def reading(self) -> ReadingState:
        """Which face is read, how far the replica is, how often Postgres was asked instead, what the cache saved."""
        return self._reader.state

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
            linked = edges.link(connection, new, created_by)
        self._wrote()
        return linked

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
        key: str = "",
        session: str = "",
        turn: int = 1,
    ) -> WriteBack:
        """Keep a good answer as a Fact; what is there already is merged by the conflict rule.

        With `connection` it happens in the caller's transaction, so together with the mark that it was done. `key`
        makes a repeated call get the first outcome; in a `session` a Fact follows that of the turn before.
        """
        from ruvllm.memory.writing.writeback import Answered, write, write_back

        answered = Answered(
            question, answer, quality, quality_source, writer, domain, tuple(derived_from), key, session, turn
        )
        if connection is not None:
            return write_back(connection, self.embedder, self.settings, answered)
        result = write(self.database, self.embedder, self.settings, answered)
        self._wrote()
        return result

    def maintain(self, progress: Progress = silent, everything: bool = False) -> MaintainReport:
        """Merge exact and near duplicates among nodes that came since the last time, or among all."""
        from ruvllm.memory.tidy.dedup import maintain

        report = maintain(self.database, self.settings, progress, everything)
        self._wrote()
        return report

    def _wrote(self) -> int:
        """The id of a transaction that began after all that was written: who has seen it has seen that."""
        with self.database.transaction() as connection:
            row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        assert row is not None
        self._reader.wrote(int(row[0]))
        return int(row[0])

    def _embedded(self, text: str) -> Vector:
        return self.embedder.embed_one(clean_text(text))

    def _in_cosines(self, found: Found, vector: Vector) -> list[Hit]:
        """Hits in the order of `found`, whose similarities are scores of another kind."""
        hits = self._reader.nodes_of(found)
        return [replace(hit, similarity=float(hit.embedding @ vector)) for hit in hits]

    def _cleaned(self, node: NewNode) -> NewNode:
        if node.embedding is not None:
            self._check_vector(node.embedding, "embedding")
        if any("\x00" in word for word in (node.source, node.domain, node.writer, *node.tags)):
            raise InputError("source, domain, writer or tag: got a NUL, want text without NUL")
        return replace(node, text=clean_text(node.text, f"text of a {node.kind} from {node.source or 'no source'}"))

    def _add_batch(self, batch: Sequence[NewNode]) -> tuple[list[int], int]:
        """Ids in order and how many were written; the embedding is done between transactions."""
        hashes = [content_hash(node.kind, node.text) for node in batch]
        known, woken = self.database.run(lambda connection: _known(connection, hashes))
        fresh = self._ready({h: n for h, n in zip(hashes, batch, strict=True) if h not in known})
        with self.database.transaction() as connection:
            written = sum(id is not None for id in rows.insert(connection, fresh))
            known = rows.live(connection, hashes)
            _raise_trust(connection, [(known[h], node) for h, node in zip(hashes, batch, strict=True)])
        self._reader.nodes += written + woken
        return [known[h].id for h in hashes], written

    def _ready(self, fresh: dict[bytes, NewNode]) -> list[Ready]:
        bare = [h for h, node in fresh.items() if node.embedding is None]
        vectors = dict(zip(bare, self.embedder.embed([fresh[h].text for h in bare]), strict=True))
        return [Ready(n, h, vectors[h] if n.embedding is None else n.embedding) for h, n in fresh.items()]

    def _check_vector(self, vector: Vector, name: str) -> None:
        if vector.shape != (self.embedder.dimension,):
            raise InputError(
                f"{name}: got shape {vector.shape}, want ({self.embedder.dimension},) of encoder {self.embedder.id}"
            )
        length = float(np.linalg.norm(vector))
        if not 0.98 <= length <= 1.02:  # NaN fails too
            raise InputError(f"{name}: got length {length:.3g}, want a unit vector")


def _filter(filter: Filter | None, exclude_kinds: Sequence[str], reader: str) -> Filter:
    if filter is None:
        return Filter(exclude_kinds=tuple(exclude_kinds), reader=reader)
    if exclude_kinds or reader:
        raise InputError("search: got a filter beside exclude_kinds or reader; want these inside the filter")
    return filter


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


def _known(connection: Connection, hashes: Sequence[bytes]) -> tuple[dict[bytes, Known], int]:
    """What lives under `hashes`, and how many nodes of it were asleep until now."""
    woken = archive.revive(connection, hashes)
    return rows.live(connection, hashes), len(woken)


def _raise_trust(connection: Connection, pairs: Sequence[tuple[Known, NewNode]]) -> None:
    for known, node in pairs:
        trust = raised_trust(known.trust, known.writer, node.trust, node.writer)
        if trust != known.trust:
            connection.execute("UPDATE memory.nodes SET trust = %s WHERE id = %s", (trust, known.id))
