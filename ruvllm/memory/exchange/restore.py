"""Writes the checked rows of an exported memory. Knows nothing of what is wrong with a row or of how it was read.

A row is found again by its uuid. Uuids are unique in the whole database, so one that another tenant's row has gets a
twin, made of it and of the tenant's name: the same on every run.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.memory import rows
from ruvllm.memory.exchange import dump
from ruvllm.memory.exchange.dump import Manifest, Row
from ruvllm.memory.exchange.rowcheck import key
from ruvllm.memory.likeness.minhash import signed
from ruvllm.progress import Progress
from ruvllm.text import clean_text

_INSERT = """
    WITH node AS (
        INSERT INTO memory.nodes (uuid, tenant, kind, domain, trust, content_hash, embedding, confidence, version,
                                  archived_at, created_at, updated_at, span_start, span_end)
        VALUES (%(uuid)s, current_setting('app.tenant'), %(kind)s, %(domain)s, %(trust)s, %(hash)s, %(embedding)s,
                %(confidence)s, %(version)s, %(archived_at)s, %(created_at)s, %(updated_at)s, %(span_start)s,
                %(span_end)s)
        ON CONFLICT DO NOTHING RETURNING id, tenant
    ), texts AS (
        INSERT INTO memory.node_texts (node, tenant, text, source, writer, tags, metadata)
        SELECT id, tenant, %(text)s, %(source)s, %(writer)s, %(tags)s, %(metadata)s FROM node
    ), used AS (
        INSERT INTO memory.node_usage (node, tenant, uses, last_used_at)
        SELECT id, tenant, %(uses)s, %(last_used_at)s FROM node WHERE %(last_used_at)s::timestamptz IS NOT NULL
    ), bands AS (
        INSERT INTO memory.minhash_bands (node, tenant, band, hash, scheme)
        SELECT id, tenant, b.place - 1, b.hash, %(scheme)s
        FROM node, unnest(%(bands)s::bigint[]) WITH ORDINALITY AS b (hash, place)
    )
    SELECT id FROM node
"""
_SUPERSEDE = """
    UPDATE memory.nodes SET superseded_by = %(heir)s
    WHERE id = %(id)s AND superseded_by IS NULL AND archived_at IS NOT NULL AND id <> %(heir)s
"""
# A slab at once: the triggers that keep packed adjacency rows run once a statement, not once an edge.
_LINK = """
    INSERT INTO memory.edges (uuid, tenant, src, dst, rel, weight, confidence, created_by, created_at, last_used_at,
                              uses, decayed_at)
    SELECT uuid, current_setting('app.tenant'), src, dst, rel, weight, confidence, created_by, created_at, last_used_at,
           uses, decayed_at
    FROM unnest(
        %(uuid)s::uuid[], %(src)s::bigint[], %(dst)s::bigint[], %(rel)s::text[], %(weight)s::real[],
        %(confidence)s::real[], %(created_by)s::text[], %(created_at)s::timestamptz[], %(last_used_at)s::timestamptz[],
        %(uses)s::bigint[], %(decayed_at)s::timestamptz[]
    ) AS new (uuid, src, dst, rel, weight, confidence, created_by, created_at, last_used_at, uses, decayed_at)
    ON CONFLICT DO NOTHING RETURNING uuid
"""
_LINK_COLUMNS = (
    "uuid", "src", "dst", "rel", "weight", "confidence", "created_by", "created_at", "last_used_at", "uses",
    "decayed_at",
)  # fmt: skip
_FIND = "SELECT uuid::text, id FROM memory.nodes WHERE uuid = ANY(%s::uuid[])"


class Restore:
    """One import. `left_out` are (file, row) of bad rows; without `embedder` the file's vectors are taken."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        manifest: Manifest,
        sound: set[bytes],
        left_out: frozenset[tuple[str, int]],
        embedder: EmbeddingAdapter | None,
        progress: Progress,
    ) -> None:
        self._database, self._folder, self._manifest = database, folder, manifest
        self._left_out, self._embedder, self._progress = left_out, embedder, progress
        self._nodes, self._edges = len(sound), manifest.files["edges"].rows
        self.written = self.there = self.linked = self.links_there = 0
        self.same_text: dict[bytes, int] = {}  # rows that became a node with another uuid

    def nodes(self) -> None:
        """Write the nodes, in batches; archived ones without their heirs, who may come later in the file."""
        for slab in self._slabs("nodes"):
            with self._database.transaction() as connection:
                known = self._known(connection, [row["uuid"] for row in slab])
                fresh = [row for row in slab if key(row["uuid"]) not in known]
            values = [_values(row, vector) for row, vector in zip(fresh, self._vectors(fresh), strict=True)]
            with self._database.transaction() as connection:
                texts = rows.live(connection, [each["hash"] for each in values if each["archived_at"] is None])
                for each in values:
                    self._write(connection, each, texts)
            self.there += len(slab) - len(fresh)
            self._progress(self.written + self.there, max(self._nodes, 1), "writing nodes")

    def heirs(self) -> None:
        """Point each archived node to the one that took it in."""
        for slab in self._slabs("nodes", ("uuid", "superseded_by")):
            pairs = [(row["uuid"], row["superseded_by"]) for row in slab if row["superseded_by"]]
            with self._database.transaction() as connection:
                known = self._known(connection, [each for pair in pairs for each in pair])
                for loser, heir in pairs:
                    if key(loser) in known and key(heir) in known:
                        connection.execute(_SUPERSEDE, {"id": known[key(loser)], "heir": known[key(heir)]})

    def edges(self) -> None:
        for slab in self._slabs("edges"):
            with self._database.transaction() as connection:
                known = self._known(connection, [row[name] for row in slab for name in ("src", "dst")])
                ends = [{**row, "src": known[key(row["src"])], "dst": known[key(row["dst"])]} for row in slab]
                self._link(connection, [row for row in ends if row["src"] != row["dst"]])
                self.links_there += sum(row["src"] == row["dst"] for row in ends)  # two rows of a text are one node now
            self._progress(self.linked + self.links_there, max(self._edges, 1), "writing edges")

    def _slabs(self, name: str, only: Sequence[str] = ()) -> Iterator[list[Row]]:
        for slab in dump.read(self._folder, self._manifest, name, only):
            yield [row for at, row in slab if (name, at) not in self._left_out]

    def _known(self, connection: Connection, uuids: Sequence[str]) -> dict[bytes, int]:
        """Ids of those `uuids` that are in memory: by themselves, by their twin, or as the node with their text."""
        twins = {key(self._twin(each)): key(each) for each in uuids}
        asked = [*uuids, *(str(uuid.UUID(bytes=twin)) for twin in twins)]
        found = {key(each): id for each, id in connection.execute(_FIND, [asked])}
        by_twin = {twins[each]: id for each, id in found.items() if each in twins}
        by_text = {each: self.same_text[each] for each in map(key, uuids) if each in self.same_text}
        return {**by_twin, **by_text, **found}

    def _twin(self, of: str) -> str:
        """A UUIDv7 of the same moment whose other bits are a hash."""
        taken = key(of)
        hashed = hashlib.sha256(taken + self._database.tenant.encode()).digest()[6:16]
        return str(
            uuid.UUID(bytes=taken[:6] + bytes([0x70 | hashed[0] & 15, hashed[1], 0x80 | hashed[2] & 63]) + hashed[3:])
        )

    def _vectors(self, fresh: Sequence[Row]) -> Sequence[Any]:
        if self._embedder is None:
            return [row["embedding"] for row in fresh]
        return list(self._embedder.embed([clean_text(row["text"]) for row in fresh]))

    def _write(self, connection: Connection, values: dict[str, Any], texts: Mapping[bytes, rows.Known]) -> None:
        held = None if values["archived_at"] else texts.get(values["hash"])
        if held is None and self._inserted(connection, values):
            self.written += 1
            return
        held = held or rows.live(connection, [values["hash"]])[values["hash"]]  # it came a moment ago
        self.same_text[key(values["uuid"])] = held.id
        self.there += 1

    def _inserted(self, connection: Connection, values: dict[str, Any]) -> bool:
        """Under its own uuid, or, where another tenant has that, under the twin."""
        twin = {**values, "uuid": self._twin(values["uuid"])}
        return any(connection.execute(_INSERT, each).fetchone() for each in (values, twin))

    def _link(self, connection: Connection, fresh: Sequence[Row]) -> None:
        """Each under its own uuid, or, where another tenant has that, under the twin."""
        left = _insert_edges(connection, fresh)
        left = _insert_edges(connection, [{**row, "uuid": self._twin(row["uuid"])} for row in left])
        self.linked, self.links_there = self.linked + len(fresh) - len(left), self.links_there + len(left)


def _insert_edges(connection: Connection, edges: Sequence[Row]) -> list[Row]:
    """Those that are not written: the uuid is taken, or the edge is there."""
    if not edges:
        return []
    columns = {name: [row[name] for row in edges] for name in _LINK_COLUMNS}
    written = {uuid.bytes for (uuid,) in connection.execute(_LINK, columns)}
    return [row for row in edges if key(row["uuid"]) not in written]


def _values(row: Row, vector: Any) -> dict[str, Any]:
    text = clean_text(row["text"])
    bands = signed(text)
    return {
        **row,
        "text": text,
        "hash": rows.content_hash(row["kind"], text),
        "embedding": rows.half(vector),
        "metadata": Jsonb(row["metadata"]),
        "bands": list(bands.hashes) if row["archived_at"] is None else [],
        "scheme": bands.scheme,
    }
