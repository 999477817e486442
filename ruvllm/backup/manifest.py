"""The manifest of a backup: which files, with which hashes, holding which rows. Knows nothing of how they are made.

<backup>/manifest.json        this; written last, so that a backup without one is none
<backup>/database.dump        pg_dump's custom format
<backup>/mlflow.db            where MLflow keeps its figures in the state directory
<backup>/state/…              artifacts, bundles and the nights' workspaces, as under the state directory
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ruvllm.errors import ArtifactError

MANIFEST = "manifest.json"
DUMP = "database.dump"
MLFLOW = "mlflow.db"
STATE = "state"
FORMAT = 1
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TableDigest:
    """`digest` is a sum over the rows, so that their order does not count."""

    rows: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What a backup holds. `files` maps a path inside of it to its sha256; `tables` are `schema.table`."""

    created_at: str
    code_version: str
    revision: str  # of the schema
    encoder_id: str
    dimension: int
    champion: str  # the version that served; empty before the first promotion
    artifacts_uri: str  # where MLflow's artifacts lay; empty where they are on a server of the user's own
    files: Mapping[str, str]
    tables: Mapping[str, TableDigest]
    format: int = FORMAT

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup, its fields checked.

    Raises:
        ArtifactError: there is none, or it is not one of this format.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ArtifactError(f"backup {folder}: its format is {values.get('format')!r}, want {FORMAT}")
        tables = {name: TableDigest(**table) for name, table in values.pop("tables").items()}
        return Manifest(**values, tables=tables)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"backup {folder}: {MANIFEST} cannot be read ({error}); a backup that was not finished has none, "
            "take another one"
        ) from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Nothing, where every file is there with its hash.

    Raises:
        ArtifactError: names the first file that is missing or altered, or whose path leaves the folder.
    """
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"backup {folder}: its manifest names {name!r}, want paths inside of the backup")
        got = sha256_of(path) if path.is_file() else "missing"
        if got != wanted:
            raise ArtifactError(f"backup {folder}: {name}: sha256 is {got}, want {wanted}; restore an older backup")


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def files_under(folder: Path) -> Iterator[Path]:
    """Every plain file under `folder`, in order; links are left out, what they point to is not ours."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
