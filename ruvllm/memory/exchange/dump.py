"""Files of an exported memory: a folder of nodes, edges and a manifest, as Parquet or JSONL. Knows no database.

    <folder>/manifest.json            encoder, dimension, format; rows and sha256 of each file
    <folder>/nodes.parquet | .jsonl   a node a row, as it lies in memory, its vector in it
    <folder>/edges.parquet | .jsonl   an edge a row, its ends by uuid

A row is a dictionary of plain values under the names of NODE_COLUMNS and EDGE_COLUMNS: times are datetimes with a zone,
the metadata is a dictionary, the embedding an array (d,). Rows are read and written in slabs, never all at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ruvllm.errors import ArtifactError, InputError
from ruvllm.progress import Progress, silent

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

VERSION = 1
FORMATS = ("parquet", "jsonl")
Row = dict[str, Any]

# name: kind of value; a kind that ends in ? may be null
NODE_COLUMNS = {
    "uuid": "text", "kind": "text", "domain": "text", "trust": "text", "text": "text", "source": "text",
    "writer": "text", "tags": "texts", "metadata": "object", "confidence": "real", "version": "int",
    "superseded_by": "text?", "archived_at": "time?", "created_at": "time", "updated_at": "time",
    "span_start": "time?", "span_end": "time?", "uses": "int", "last_used_at": "time?", "embedding": "vector",
}  # fmt: skip
EDGE_COLUMNS = {
    "uuid": "text", "src": "text", "dst": "text", "rel": "text", "weight": "real", "confidence": "real",
    "created_by": "text", "created_at": "time", "last_used_at": "time", "uses": "int",
    "decayed_at": "time?",
}  # fmt: skip
COLUMNS = {"nodes": NODE_COLUMNS, "edges": EDGE_COLUMNS}
SLAB = 512  # rows at once
_LONGEST_LINE = 4 * 2**20  # bytes of JSON; the largest legal row has 20,000 characters of text and 4,000 numbers


@dataclass(frozen=True)
class FileFacts:
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    format: str
    encoder: str
    dimension: int
    made_at: str
    files: dict[str, FileFacts]  # by "nodes" and "edges"
    version: int = VERSION

    def path(self, folder: Path, name: str) -> Path:
        return folder / f"{name}.{self.format}"


class Writer(Protocol):
    """Takes rows in slabs; the file is whole once it is closed."""

    def write(self, rows: Sequence[Row]) -> None: ...

    def close(self) -> None: ...


# -- a folder, whole or not at all


class Folder:
    """An export being written: beside its place until `finish`, so that a killed one leaves no half folder there."""

    def __init__(self, folder: Path, format: str, encoder: str, dimension: int) -> None:
        if format not in FORMATS:
            raise InputError(f"format: got {format!r}, want one of {', '.join(FORMATS)}")
        if folder.exists():
            raise InputError(f"{folder}: is there already; name a folder that is not, or remove it")
        self._folder, self._partial = folder, folder.with_name(f"{folder.name}.partial")
        self._format, self._encoder, self._dimension = format, encoder, dimension
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True, mode=0o700)

    def write(self, name: str, slabs: Iterable[Sequence[Row]]) -> int:
        """Write the file `name` and return its number of rows."""
        path, count = self._partial / f"{name}.{self._format}", 0
        opened = _WRITERS[self._format](path, COLUMNS[name], self._dimension, self._encoder)
        try:
            for rows in slabs:
                opened.write(rows)
                count += len(rows)
        finally:
            opened.close()
        return count

    def finish(self, rows: dict[str, int], made_at: str) -> None:
        """Write the manifest, then show the folder under its name."""
        files = {n: FileFacts(count, sha256(self._partial / f"{n}.{self._format}")) for n, count in rows.items()}
        manifest = Manifest(self._format, self._encoder, self._dimension, made_at, files)
        _durable(self._partial / "manifest.json", json.dumps(asdict(manifest), indent=1))
        self._partial.rename(self._folder)

    def drop(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)


def _durable(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def sha256(path: Path, progress: Progress = silent) -> str:
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
            done += len(block)
            progress(done, size, f"hashing {path.name}")
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        ArtifactError: there is none, or it is not one that this version reads.
    """
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        files = {name: FileFacts(int(f["rows"]), str(f["sha256"])) for name, f in found["files"].items()}
        manifest = Manifest(**{**found, "files": files})
    except OSError as error:
        wanted = 'want a folder that "ruvllm memory export" wrote'
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); {wanted}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path}: is no manifest of an exported memory ({error!r}); export it anew") from error
    if manifest.version != VERSION or manifest.format not in FORMATS or set(files) != set(COLUMNS):
        raise ArtifactError(
            f"{path}: version {manifest.version}, format {manifest.format}, files {', '.join(sorted(files))}; this "
            f"RuvLLM reads version {VERSION}, {' or '.join(FORMATS)}, edges and nodes; upgrade it, or export anew"
        )
    return manifest


def check_hashes(folder: Path, manifest: Manifest, progress: Progress = silent) -> None:
    """
    Raises:
        ArtifactError: a file is missing, truncated or altered.
    """
    for name, facts in manifest.files.items():
        path = manifest.path(folder, name)
        if not path.is_file():
            raise ArtifactError(f"{path}: is missing; export the memory anew")
        if (got := sha256(path, progress)) != facts.sha256:
            raise ArtifactError(
                f"{path}: sha256 is {got[:12]}…, the manifest has {facts.sha256[:12]}…: truncated or altered; "
                "export anew, or import with --edited if you changed it yourself"
            )


# -- reading


def read(folder: Path, manifest: Manifest, name: str, only: Sequence[str] = ()) -> Iterator[list[tuple[int, Row]]]:
    """Slabs of (position, row) of the file `name`, counted from 1; `only` these columns.

    A row that cannot be read at all has the one key "broken", which says why.

    Raises:
        ArtifactError: the file is not of its format, or a column is missing or of another type.
    """
    columns = {key: kind for key, kind in COLUMNS[name].items() if not only or key in only}
    rows = _READERS[manifest.format](manifest.path(folder, name), columns, manifest.dimension)
    numbered = enumerate(rows, 1)
    while slab := list(islice(numbered, SLAB)):
        yield slab


def _read_jsonl(path: Path, columns: dict[str, str], dimension: int) -> Iterator[Row]:
    try:
        with path.open("rb") as opened:
            while line := opened.readline(_LONGEST_LINE):
                yield parse_line(line, columns)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error


def parse_line(line: bytes, columns: dict[str, str]) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            return {"broken": f"got a {type(row).__name__}, want an object"}
        return {name: _from_json(row[name], kind) for name, kind in columns.items()}
    except KeyError as error:
        return {"broken": f"column {error.args[0]} is missing"}
    except (ValueError, TypeError, RecursionError) as error:
        return {"broken": f"is no JSON of a row: {error}"}


def _from_json(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind.startswith("time"):
        return datetime.fromisoformat(value)
    if kind == "vector":
        with np.errstate(over="ignore"):  # too large becomes infinite, which no check lets through
            return np.asarray(value, dtype=np.float32)
    return value


def _read_parquet(path: Path, columns: dict[str, str], dimension: int) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    wanted = _schema(columns, dimension)
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as opened:
            _check_schema(path, opened.schema_arrow, wanted)
            for batch in opened.iter_batches(SLAB, columns=list(columns)):
                yield from _from_arrow(batch, columns, dimension)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: is no whole Parquet file: {str(error).splitlines()[0]}") from error


def _check_schema(path: Path, got: pa.Schema, wanted: pa.Schema) -> None:
    for field in wanted:
        place = got.get_field_index(field.name)
        found = got.field(place).type if place >= 0 else None
        if found != field.type:
            raise ArtifactError(f"{path}: column {field.name} is {found or 'missing'}, want {field.type}")


def _from_arrow(batch: pa.RecordBatch, columns: dict[str, str], dimension: int) -> Iterator[Row]:
    values = {name: _column(batch.column(name), kind, dimension) for name, kind in columns.items()}
    for place in range(batch.num_rows):
        try:
            yield {name: _from_cell(values[name][place], kind) for name, kind in columns.items()}
        except (ValueError, RecursionError) as error:
            yield {"broken": f"metadata is no JSON: {error}"}


def _column(column: pa.Array, kind: str, dimension: int) -> Any:
    if kind != "vector" or column.null_count:
        return column.to_pylist()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)


def _from_cell(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "object":
        return json.loads(value)
    return np.asarray(value, dtype=np.float32) if kind == "vector" else value


# -- writing


class _JsonLines:
    def __init__(self, path: Path, columns: dict[str, str], dimension: int, encoder: str) -> None:
        self._out = path.open("w", encoding="utf-8")

    def write(self, rows: Sequence[Row]) -> None:
        self._out.writelines(f"{json.dumps(row, default=_plain, ensure_ascii=False)}\n" for row in rows)

    def close(self) -> None:
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return [float(f"{number:.5g}") for number in value]  # a half float is told by five digits


class _Parquet:
    """Page checksums in it; floats split by byte: stored half floats, read as floats, shrink to little over half."""

    def __init__(self, path: Path, columns: dict[str, str], dimension: int, encoder: str) -> None:
        from pyarrow import parquet

        self._columns, self._dimension = columns, dimension
        self._schema = _schema(columns, dimension).with_metadata({"encoder": encoder, "dimension": str(dimension)})
        self._out = parquet.ParquetWriter(
            path, self._schema, compression="zstd", write_page_checksum=True, use_byte_stream_split=_split(columns),
            use_dictionary=[name for name, kind in columns.items() if kind == "text" and name != "text"],
        )  # fmt: skip

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa

        arrays = [self._array([row[name] for row in rows], name, kind) for name, kind in self._columns.items()]
        self._out.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        self._out.close()

    def _array(self, values: list[Any], name: str, kind: str) -> pa.Array:
        import pyarrow as pa

        if kind == "vector":
            flat = np.concatenate([*values, np.empty(0, np.float32)], dtype=np.float32)
            return pa.FixedSizeListArray.from_arrays(pa.array(flat), self._dimension)
        if kind == "object":
            values = [json.dumps(value, ensure_ascii=False) for value in values]
        return pa.array(values, self._schema.field(name).type)


def _split(columns: dict[str, str]) -> list[str]:
    return [f"{name}.list.element" for name, kind in columns.items() if kind == "vector"]


def _schema(columns: dict[str, str], dimension: int) -> pa.Schema:
    import pyarrow as pa

    types = {
        "text": pa.string(), "texts": pa.list_(pa.string()), "object": pa.string(), "real": pa.float32(),
        "int": pa.int64(), "time": pa.timestamp("us", tz="UTC"), "vector": pa.list_(pa.float32(), dimension),
    }  # fmt: skip
    return pa.schema([pa.field(name, types[kind.rstrip("?")]) for name, kind in columns.items()])


_WRITERS: dict[str, type[_JsonLines] | type[_Parquet]] = {"jsonl": _JsonLines, "parquet": _Parquet}
_READERS = {"jsonl": _read_jsonl, "parquet": _read_parquet}
