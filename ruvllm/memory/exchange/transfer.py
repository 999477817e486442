"""Memory out of the database into files and back. Knows nothing of the files' formats: those are dump.py's.

An import looks at every row before it writes the first one, then writes in batches, a transaction each, and finds again
what it wrote: killed, it goes on; run twice, it writes nothing. Rows keep their uuids and get ids of this database; a
row whose text a live node holds already becomes that node. Who superseded what in which run is not carried over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.rows import dict_row

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import DatabaseError, EncoderMismatchError, InputError
from ruvllm.memory.exchange import dump
from ruvllm.memory.exchange.dump import Manifest, Row
from ruvllm.memory.exchange.restore import Restore
from ruvllm.memory.exchange.rowcheck import EdgeCheck, NodeCheck
from ruvllm.progress import Progress, silent

_SHOWN = 10  # bad rows named in the message that refuses a file

_NODES = """
    SELECT n.id, n.uuid::text, n.kind, n.domain, n.trust, t.text, t.source, t.writer, t.tags, t.metadata, n.confidence,
           n.version, heir.uuid::text AS superseded_by, n.archived_at, n.created_at, n.updated_at, n.span_start,
           n.span_end, coalesce(u.uses, 0) AS uses, u.last_used_at, n.embedding
    FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    LEFT JOIN memory.node_usage u ON u.node = n.id LEFT JOIN memory.nodes heir ON heir.id = n.superseded_by
    ORDER BY n.id
"""
_EDGES = """
    SELECT e.src AS src_id, e.dst AS dst_id, e.uuid::text, s.uuid::text AS src, d.uuid::text AS dst, e.rel, e.weight,
           e.confidence, e.created_by, e.created_at, e.last_used_at, e.uses, e.decayed_at
    FROM memory.edges e JOIN memory.nodes s ON s.id = e.src JOIN memory.nodes d ON d.id = e.dst ORDER BY e.id
"""
_COUNTS = "SELECT (SELECT count(*) FROM memory.nodes), (SELECT count(*) FROM memory.edges)"


@dataclass(frozen=True)
class ExportReport:
    folder: Path
    nodes: int
    edges: int


@dataclass(frozen=True)
class BadRow:
    file: str
    row: int  # counted from 1
    problem: str

    def __str__(self) -> str:
        return f"{self.file} row {self.row}: {self.problem}"


@dataclass(frozen=True)
class ImportReport:
    """`there`: rows that this memory held already, by uuid or, `same_text` of them, by their text."""

    nodes: int
    there: int
    same_text: int
    edges: int
    edges_there: int
    bad: tuple[BadRow, ...]


@dataclass(frozen=True)
class ImportOptions:
    re_embed: bool = False  # make every vector anew with this memory's encoder
    skip_bad: bool = False  # leave bad rows out instead of refusing the file
    edited: bool = False  # the files were changed on purpose: their hashes are not compared


# -- out


def export_memory(
    database: Database, folder: Path, format: str = "parquet", progress: Progress = silent
) -> ExportReport:
    """Write the tenant's nodes, archived ones too, and their edges to the new folder `folder`, whole or not at all.

    The nodes are those of one moment; edges to nodes that came later are left out.

    Raises:
        InputError: the folder is there already, or the format is unknown.
    """
    encoder, dimension = _encoder(database)
    out = dump.Folder(folder, format, encoder, dimension)
    try:
        with database.transaction() as connection:
            totals = _totals(connection)
            ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
            nodes = out.write("nodes", _exported(connection, totals, progress, ids))
            edges = out.write("edges", _exported_edges(connection, totals, progress, np.concatenate(ids)))
        out.finish({"nodes": nodes, "edges": edges}, datetime.now(UTC).isoformat(timespec="seconds"))
    except BaseException:
        out.drop()
        raise
    return ExportReport(folder, nodes, edges)


def _encoder(database: Database) -> tuple[str, int]:
    with database.transaction() as connection:
        row = connection.execute("SELECT id, dimension FROM memory.encoder").fetchone()
    if row is None:
        raise DatabaseError('memory.encoder: has no row, so the schema is not complete; run "ruvllm doctor"')
    return str(row[0]), int(row[1])


def _totals(connection: Connection) -> tuple[int, int]:
    row = connection.execute(_COUNTS).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _exported(
    connection: Connection, totals: tuple[int, int], progress: Progress, ids: list[NDArray[np.int64]]
) -> Iterator[list[Row]]:
    """Slabs of nodes; their ids are added to `ids`, 8 bytes a node."""
    done = 0
    for slab in _slabs(connection, "nodes", _NODES):
        ids.append(np.array([row.pop("id") for row in slab], np.int64))
        for row in slab:
            row["embedding"] = row["embedding"].to_numpy().astype(np.float32)
        yield slab
        done += len(slab)
        progress(done, sum(totals), "nodes")


def _exported_edges(
    connection: Connection, totals: tuple[int, int], progress: Progress, ids: NDArray[np.int64]
) -> Iterator[list[Row]]:
    """Slabs of edges among the nodes `ids` (n,), which are in order."""
    done = totals[0]
    for slab in _slabs(connection, "edges", _EDGES):
        inside = _among(np.array([(row.pop("src_id"), row.pop("dst_id")) for row in slab], np.int64), ids)
        yield [row for row, both in zip(slab, inside, strict=True) if both]
        done += len(slab)
        progress(done, sum(totals), "edges")


def _among(ends: NDArray[np.int64], ids: NDArray[np.int64]) -> list[bool]:
    """Of each pair (n, 2) whether both are among the sorted `ids`."""
    places = np.minimum(np.searchsorted(ids, ends), max(len(ids) - 1, 0))
    return [bool(both) for both in (ids[places] == ends).all(axis=1)] if len(ids) else [False] * len(ends)


def _slabs(connection: Connection, name: str, query: str) -> Iterator[list[Row]]:
    with connection.cursor(name=name, row_factory=dict_row) as cursor:
        cursor.execute(query.encode())
        while slab := cursor.fetchmany(dump.SLAB):
            yield slab


# -- in


def import_memory(
    database: Database,
    folder: Path,
    embedder: Callable[[], EmbeddingAdapter] | None = None,
    options: ImportOptions = ImportOptions(),
    progress: Progress = silent,
) -> ImportReport:
    """Bring an exported memory into the tenant of `database`.

    Args:
        embedder: opens the encoder; called only to re-embed.

    Raises:
        ArtifactError: a file is missing, truncated, altered or of another format.
        EncoderMismatchError: the vectors are another encoder's, and they are not to be made anew.
        InputError: rows are bad, and they are not to be skipped; nothing was written.
    """
    manifest = dump.read_manifest(folder)
    _check_encoder(database, manifest, options)
    if not options.edited:
        dump.check_hashes(folder, manifest, progress)
    bad, sound = _checked(folder, manifest, options, progress)
    if bad and not options.skip_bad:
        raise InputError(_refusal(folder, bad))
    left_out = frozenset((each.file, each.row) for each in bad)
    if options.re_embed and embedder is None:
        raise InputError("re_embed: got no encoder, want one")
    made_by = embedder() if options.re_embed and embedder else None
    work = Restore(database, folder, manifest, sound, left_out, made_by, progress)
    work.nodes()
    work.heirs()
    work.edges()
    return ImportReport(work.written, work.there, len(work.same_text), work.linked, work.links_there, tuple(bad))


def _check_encoder(database: Database, manifest: Manifest, options: ImportOptions) -> None:
    ours, theirs = _encoder(database), (manifest.encoder, manifest.dimension)
    if ours != theirs and not options.re_embed:
        raise EncoderMismatchError(
            f"the files hold vectors of encoder {theirs[0]} ({theirs[1]} dimensions), this memory those of {ours[0]}"
            f" ({ours[1]} dimensions); import with --re-embed to make them anew from the texts"
        )


def _refusal(folder: Path, bad: Sequence[BadRow]) -> str:
    shown = "".join(f"\n  {each}" for each in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return (
        f"{folder}: {len(bad)} bad rows, so nothing was written; mend them and import with --edited, or leave them out "
        f"with --skip-bad{shown}{more}"
    )


def _checked(
    folder: Path, manifest: Manifest, options: ImportOptions, progress: Progress
) -> tuple[list[BadRow], set[bytes]]:
    """Every bad row, and the uuids of the sound nodes: about 90 bytes a node."""
    bad: list[BadRow] = []
    total, done = sum(facts.rows for facts in manifest.files.values()), 0
    nodes = NodeCheck(manifest.dimension, with_vectors=not options.re_embed)
    for name, check in (("nodes", nodes), ("edges", EdgeCheck(nodes.seen))):
        for slab in dump.read(folder, manifest, name):
            bad += [BadRow(name, at, found) for at, row in slab if (found := check.problem(row))]
            done += len(slab)
            progress(done, max(done, total), f"checking {name}")
    return bad, nodes.seen
