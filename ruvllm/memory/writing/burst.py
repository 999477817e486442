"""Many nodes at once: copied into a waiting table without an index, merged into memory in the background.

A row that waits is in Postgres and survives all that Postgres survives, but no search finds it before it is merged:
looking through the waiting rows would cost every search what the burst was to save. `waiting` says how far behind it
is. Knows nothing of who sends bursts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import Connection
from psycopg.types.json import Jsonb

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import InputError
from ruvllm.memory import rows
from ruvllm.memory.likeness.conflict import raised_trust
from ruvllm.memory.records import KINDS, TRUSTS, NewNode
from ruvllm.memory.rows import Known, Ready, content_hash
from ruvllm.memory.tidy import archive
from ruvllm.progress import Progress, silent
from ruvllm.text import clean_text

Matrix = NDArray[np.float32]

_CHUNK = 1_000  # rows a statement: arrays of them, for COPY is not to be had under row-level security
_BATCH = 200  # rows merged in a transaction: what a kill costs, and how long it keeps its locks
_NAMED = 10  # bad rows named in an error
_BETWEEN_TAGS = "\x1f"  # a control character: no clean tag holds one

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it

_ADD = """
    INSERT INTO memory.ingest (tenant, kind, domain, trust, content_hash, embedding, confidence, text, source, writer,
                               tags, metadata)
    SELECT current_setting('app.tenant'), kind, domain, trust, hash, embedding, confidence, text, source, writer,
           string_to_array(tags, E'\\x1f'), metadata
    FROM unnest(%(kind)s::text[], %(domain)s::text[], %(trust)s::text[], %(hash)s::bytea[], %(embedding)b::halfvec[],
                %(confidence)s::real[], %(text)s::text[], %(source)s::text[], %(writer)s::text[], %(tags)s::text[],
                %(metadata)s::jsonb[])
        AS new (kind, domain, trust, hash, embedding, confidence, text, source, writer, tags, metadata)
"""
_NEXT = """
    SELECT id, kind, domain, trust, content_hash, embedding, confidence, text, source, writer, tags, metadata
    FROM memory.ingest WHERE embedding IS NOT NULL ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
_BARE = "SELECT id, text FROM memory.ingest WHERE embedding IS NULL ORDER BY id LIMIT %(limit)s"
_EMBEDDED = "UPDATE memory.ingest SET embedding = %(vector)s WHERE id = %(id)s AND embedding IS NULL"
_DONE = "DELETE FROM memory.ingest WHERE id = ANY(%(ids)s)"
_WAITING = """
    SELECT count(*), count(*) FILTER (WHERE embedding IS NULL),
           coalesce(extract(epoch FROM now() - min(came_at)), 0) FROM memory.ingest
"""


@dataclass(frozen=True)
class BurstReport:
    """What was taken in; it waits to be merged."""

    accepted: int
    seconds: float


@dataclass(frozen=True)
class MergeReport:
    """`merged` are new nodes, `known` were in memory already, `left` still wait (`unembedded` of them for a vector)."""

    merged: int
    known: int
    left: int
    unembedded: int
    seconds: float


@dataclass(frozen=True)
class Waiting:
    """Rows that wait, those of them without a vector, and how long the oldest has waited."""

    rows: int
    unembedded: int
    oldest_s: float


def add(
    database: Database, nodes: Sequence[NewNode], vectors: Matrix | None = None, progress: Progress = silent
) -> BurstReport:
    """Take in all of `nodes` or none; `vectors` (n, d) are unit vectors of memory's encoder, None: those of the nodes.

    A node without any waits until it is merged to be embedded.

    Raises:
        InputError: rows are unacceptable; the first ten are named with their position, from 0.
    """
    began = time.perf_counter()
    clean, bad = _cleaned(nodes)
    matrix, given = _matrix(nodes, vectors, _dimension(database))
    bad |= {i: why for i, why in _bad_vectors(matrix, given).items() if i not in bad}
    if bad:
        raise InputError(_named(bad, len(nodes)))
    with database.transaction() as connection:
        for start in range(0, len(clean), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            connection.execute(_ADD, _to_columns(clean[chunk], matrix[chunk], given[chunk]))
            progress(min(start + _CHUNK, len(clean)), len(clean))
    return BurstReport(len(clean), time.perf_counter() - began)


def merge(
    database: Database, embedder: EmbeddingAdapter | None, limit: int | None = None, progress: Progress = silent
) -> MergeReport:
    """Make up to `limit` waiting rows nodes, a batch a transaction; killed, it goes on where it was.

    Rows without a vector are embedded first, outside any transaction; without an embedder they go on waiting. A row
    whose content memory holds, or took in by a merge, only raises that node's trust.
    """
    began = time.perf_counter()
    left = waiting(database)
    total = left.rows if limit is None else min(limit, left.rows)
    if embedder is not None:
        _embed_waiting(database, embedder, total)
    merged = known = 0
    while merged + known < total:
        written, held = _merge_batch(database, min(_BATCH, total - merged - known))
        if not written + held:
            break
        merged, known = merged + written, known + held
        progress(merged + known, total)
    if total:
        left = waiting(database)
    return MergeReport(merged, known, left.rows, left.unembedded, time.perf_counter() - began)


def waiting(database: Database) -> Waiting:
    """How far the merging is behind; for metrics."""
    with database.transaction() as connection:
        count, unembedded, oldest = connection.execute(_WAITING).fetchone() or (0, 0, 0)
    return Waiting(int(count), int(unembedded), float(oldest))


def _dimension(database: Database) -> int:
    with database.transaction() as connection:
        row = connection.execute("SELECT dimension FROM memory.encoder").fetchone()
    return int(row[0]) if row else 0


def _cleaned(nodes: Sequence[NewNode]) -> tuple[list[NewNode], dict[int, str]]:
    """The nodes with clean texts, and what is wrong by position."""
    clean, bad = [], {}
    for i, node in enumerate(nodes):
        try:
            clean.append(_clean(node))
        except InputError as error:
            bad[i] = str(error)
    return clean, bad


def _clean(node: NewNode) -> NewNode:
    if node.kind not in KINDS or node.trust not in TRUSTS:
        raise InputError(f"kind {node.kind!r}, trust {node.trust!r}: want one of {KINDS} and of {TRUSTS}")
    if not 0 <= node.confidence <= 1:
        raise InputError(f"confidence: got {node.confidence}, want a number from 0 to 1")
    words = (node.source, node.domain, node.writer, *node.tags)
    if any(word and clean_text(word, "source, domain, writer or tag") != word for word in words):
        raise InputError("source, domain, writer or tag: got control characters or space around it, want plain text")
    _check_metadata(node)
    return replace(node, text=clean_text(node.text))


def _check_metadata(node: NewNode) -> None:
    try:
        text = json.dumps(dict(node.metadata), allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:  # no JSON, NaN or infinite, a lone surrogate
        raise InputError(f"metadata: {error}; want what JSON can hold") from error
    if _NUL.search(text):
        raise InputError("metadata: got a NUL, want text without NUL")


def _matrix(nodes: Sequence[NewNode], vectors: Matrix | None, width: int) -> tuple[Matrix, NDArray[np.bool_]]:
    """(n, d) float32 and (n,) which of its rows were given."""
    if vectors is not None:
        if vectors.shape != (len(nodes), width):
            raise InputError(f"vectors: got shape {vectors.shape}, want {(len(nodes), width)}")
        return np.asarray(vectors, dtype=np.float32), np.ones(len(nodes), dtype=np.bool_)
    matrix = np.zeros((len(nodes), width), dtype=np.float32)
    given = np.zeros(len(nodes), dtype=np.bool_)
    for i, node in enumerate(nodes):
        if node.embedding is not None:
            if node.embedding.shape != (width,):
                raise InputError(f"row {i}: got a vector of shape {node.embedding.shape}, want ({width},)")
            matrix[i], given[i] = node.embedding, True
    return matrix, given


def _bad_vectors(matrix: Matrix, given: NDArray[np.bool_]) -> dict[int, str]:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(matrix, axis=1)  # (n,)
    sound = (lengths >= 0.98) & (lengths <= 1.02)  # NaN fails too
    return {int(i): f"vector of length {lengths[i]:.3g}, want a unit vector" for i in np.flatnonzero(given & ~sound)}


def _named(bad: dict[int, str], count: int) -> str:
    rows_named = "; ".join(f"row {i}: {bad[i]}" for i in sorted(bad)[:_NAMED])
    more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return f"{len(bad)} of {count} rows are unacceptable and none was taken in: {rows_named}{more}"


def _to_columns(nodes: Sequence[NewNode], matrix: Matrix, given: NDArray[np.bool_]) -> dict[str, object]:
    halves = matrix.astype(np.float16)  # (n, d)
    return {
        "kind": [node.kind for node in nodes],
        "domain": [node.domain for node in nodes],
        "trust": [node.trust for node in nodes],
        "hash": [content_hash(node.kind, node.text) for node in nodes],
        "embedding": [HalfVector(half) if there else None for half, there in zip(halves, given, strict=True)],
        "confidence": [node.confidence for node in nodes],
        "text": [node.text for node in nodes],
        "source": [node.source for node in nodes],
        "writer": [node.writer for node in nodes],
        "tags": [_BETWEEN_TAGS.join(node.tags) for node in nodes],
        "metadata": [Jsonb(dict(node.metadata)) for node in nodes],
    }


def _embed_waiting(database: Database, embedder: EmbeddingAdapter, limit: int) -> None:
    for _ in range(0, limit, _BATCH):
        with database.transaction() as connection:
            bare = connection.execute(_BARE, {"limit": _BATCH}).fetchall()
        if not bare:
            return
        vectors = embedder.embed([text for _, text in bare])
        changes = [{"id": id, "vector": rows.half(v)} for (id, _), v in zip(bare, vectors, strict=True)]
        with database.transaction() as connection, connection.cursor() as cursor:
            cursor.executemany(_EMBEDDED, changes)


def _merge_batch(database: Database, limit: int) -> tuple[int, int]:
    """(rows that became nodes, rows that memory held) of the next rows that nobody else is merging."""
    return database.run(lambda connection: _merge_next(connection, limit))


def _merge_next(connection: Connection, limit: int) -> tuple[int, int]:
    found = connection.cursor(binary=True).execute(_NEXT, {"limit": limit}).fetchall()  # vectors as text cost more
    nodes = {ready.hash: ready for ready in map(_from_row, found)}
    archive.revive(connection, list(nodes))
    known = rows.live(connection, list(nodes))
    written = rows.insert(connection, [ready for hash, ready in nodes.items() if hash not in known])
    _raise_trust(connection, nodes, known)
    connection.execute(_DONE, {"ids": [row[0] for row in found]})
    fresh = sum(id is not None for id in written)
    return fresh, len(found) - fresh


def _from_row(row: Sequence[Any]) -> Ready:
    _, kind, domain, trust, hash, embedding, confidence, text, source, writer, tags, metadata = row
    node = NewNode(text, kind, source, domain, trust, writer, tuple(tags), metadata, float(confidence))
    return Ready(node, bytes(hash), embedding.to_numpy().astype(np.float32))


def _raise_trust(connection: Connection, nodes: dict[bytes, Ready], known: dict[bytes, Known]) -> None:
    for hash, held in known.items():
        new = nodes[hash].node
        trust = raised_trust(held.trust, held.writer, new.trust, new.writer)
        if trust != held.trust:
            connection.execute("UPDATE memory.nodes SET trust = %s WHERE id = %s", (trust, held.id))
