"""Logins of analysts: add, list, remove. Each reads the views of schema analytics in one tenant and writes nothing.

Works on the owner's connection (Database.owner()); knows nothing of what the views show. The role's settings (read-only
transactions, time limits) guard against accidents: a login may lift them for its session. What it may see and change is
bound by its grants and by row-level security, which it may not lift.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg
from psycopg import Connection, sql

from ruvllm.errors import DatabaseError, InputError

READER = "ruvllm_reader"
CONNECTIONS = 5  # of one login at once
SETTINGS = {
    "default_transaction_read_only": "on",
    "statement_timeout": "30s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "5min",
}
_TEMP_FILES = "2GB"  # of one session; only a superuser can set it, and then the login cannot lift it
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_RESERVED = ("pg_", "ruvllm", "postgres")

_ROLE = """
    SELECT rolcanlogin AND NOT (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication),
           array(SELECT roleid::regrole::text FROM pg_auth_members WHERE member = r.oid)
    FROM pg_roles r WHERE rolname = %s
"""


@dataclass(frozen=True)
class Analyst:
    login: str
    tenant: str
    created_at: datetime


@dataclass(frozen=True)
class Access:
    """How a login gets in; the password is in `password_file` only."""

    analyst: Analyst
    made: bool  # False: it was there already
    password_file: Path  # libpq's own format, mode 0600
    psql: str  # the command line

    @property
    def password(self) -> str:
        return self.password_file.read_text(encoding="utf-8").rsplit(":", 1)[1].strip()


def add(connection: Connection, login: str, tenant: str, folder: Path) -> Access:
    """Make `login` an analyst of `tenant`, its password file in `folder`; a second time nothing changes.

    A login whose password file is gone gets a new password.

    Raises:
        InputError: the name will not do, is another role's, or reads another tenant.
        DatabaseError: the owner may not make roles.
    """
    _check_name(login)
    _check_free(connection, login, tenant)
    file = folder.absolute() / f"{login}.pgpass"
    made = _find(connection, login) is None
    try:
        if made or not file.exists():
            _make(connection, login, tenant, password := secrets.token_urlsafe(24))
            _write_password(file, connection.info.dbname, login, password)
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"analyst {login}: {connection.info.user} may not make logins ({str(error).strip()}); "
            f"set DATABASE_URL to a user that may: ALTER ROLE {connection.info.user} CREATEROLE"
        ) from error
    analyst = _find(connection, login)
    assert analyst is not None
    return Access(analyst, made, file, _command(connection, login, file))


def listed(connection: Connection) -> list[Analyst]:
    """Every analyst of this database, by name."""
    return [Analyst(*row) for row in connection.execute(f"{_SELECT} ORDER BY login")]


def remove(connection: Connection, login: str, folder: Path) -> bool:
    """Take the tenant away, end the login's sessions, drop the role, remove its password file; False if there is none.

    Raises:
        DatabaseError: the role cannot be dropped; by then it reads nothing any more.
    """
    _check_name(login)
    if _find(connection, login) is None:
        return False
    connection.execute("DELETE FROM memory.analysts WHERE login = %s", [login])  # from here on it sees no row
    # waited for: a session that is still ending owns its temporary tables, and the role could not be dropped
    connection.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s", [login])
    try:
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(login)))
    except psycopg.Error as error:
        raise DatabaseError(
            f"analyst {login}: reads nothing any more, but the role stays: {str(error).strip()}; "
            f"have an administrator run: DROP OWNED BY {login}; DROP ROLE {login}"
        ) from error
    (folder.absolute() / f"{login}.pgpass").unlink(missing_ok=True)
    return True


_SELECT = "SELECT login, tenant, created_at FROM memory.analysts"


def _find(connection: Connection, login: str) -> Analyst | None:
    row = connection.execute(f"{_SELECT} WHERE login = %s", [login]).fetchone()
    return Analyst(*row) if row else None


def _check_name(login: str) -> None:
    if not _NAME.fullmatch(login) or login.startswith(_RESERVED):
        raise InputError(
            f"analyst {login!r}: want a name of a-z, 0-9 and _, at most 63, a letter first, "
            f"that does not begin with {', '.join(_RESERVED)}"
        )


def _check_free(connection: Connection, login: str, tenant: str) -> None:
    if not 1 <= len(tenant) <= 200:
        raise InputError(f"analyst {login}: got a tenant of {len(tenant)} characters, want 1 to 200")
    known = _find(connection, login)
    if known and known.tenant != tenant:
        raise InputError(
            f"analyst {login}: reads tenant {known.tenant!r}, not {tenant!r}; choose another name, "
            f'or run "ruvllm db analyst remove {login}" first'
        )
    role = connection.execute(_ROLE, [login]).fetchone()
    if role is not None and (not role[0] or set(role[1]) != {READER}):
        groups = ", ".join(role[1]) or "none"
        raise InputError(
            f"analyst {login}: the server has a role of that name that is no plain analyst (groups: {groups}); "
            "choose another name"
        )


def _make(connection: Connection, login: str, tenant: str, password: str) -> None:
    """The role with its settings and its row; the server gets the password's SCRAM verifier, never the password."""
    verifier = connection.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256").decode()
    role = sql.Identifier(login)
    there = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [login]).fetchone() is not None
    verb = sql.SQL("ALTER ROLE" if there else "CREATE ROLE")
    with connection.transaction():
        connection.execute(
            sql.SQL("{} {} LOGIN CONNECTION LIMIT {} PASSWORD {}").format(
                verb, role, sql.Literal(CONNECTIONS), sql.Literal(verifier)
            )
        )
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(READER), role))
        for command in _settings(connection, role):
            connection.execute(command)
        connection.execute(
            "INSERT INTO memory.analysts (login, tenant) VALUES (%s, %s) ON CONFLICT DO NOTHING", [login, tenant]
        )


def _settings(connection: Connection, role: sql.Identifier) -> list[sql.Composed]:
    """Settings for this database's sessions; views and search functions are found without their schema."""
    set_to = sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} TO {}")
    database = sql.Identifier(connection.info.dbname)
    values = dict(SETTINGS)
    if _may_limit_files(connection):
        values["temp_file_limit"] = _TEMP_FILES
    commands = [
        set_to.format(role, database, sql.Identifier(name), sql.Literal(value)) for name, value in values.items()
    ]
    path = sql.SQL("analytics, ") + sql.SQL(", ").join(map(sql.Identifier, _vector_schemas(connection)))
    return [*commands, set_to.format(role, database, sql.Identifier("search_path"), path)]


def _may_limit_files(connection: Connection) -> bool:
    row = connection.execute("SELECT has_parameter_privilege('temp_file_limit', 'SET')").fetchone()
    return bool(row and row[0])


def _vector_schemas(connection: Connection) -> list[str]:
    """Where pgvector's types and operators lie."""
    found = connection.execute("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
    return [str(row[0]) for row in found]


def _write_password(file: Path, database: str, login: str, password: str) -> None:
    """Whole or not at all, closed to others before the password is in it."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(f"*:*:{_escaped(database)}:{login}:{password}\n")
    partial.replace(file)


def _escaped(field: str) -> str:
    """As libpq's password file wants it."""
    return re.sub(r"([\\:])", r"\\\1", field)


def _command(connection: Connection, login: str, file: Path) -> str:
    info = connection.info
    address = psycopg.conninfo.make_conninfo(
        host=info.host, port=info.port, dbname=info.dbname, user=login, passfile=str(file)
    )
    return f'psql "{address}"'
