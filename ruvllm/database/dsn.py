"""Connection strings: what may be shown, and the forms that other libraries want. Opens no connection."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ruvllm.errors import SettingsError


def check_dsn(dsn: str) -> str:
    """`dsn` itself, where libpq can read it.

    Raises:
        SettingsError: it cannot.
    """
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        wanted = "want postgresql://user:password@host:5432/name"
        raise SettingsError(f"DATABASE_URL: not a Postgres address ({error}); {wanted}") from error
    return dsn


def shown(dsn: str) -> str:
    """`dsn` without its password and options, for messages and screens."""
    parts = {key: value for key, value in conninfo_to_dict(dsn).items() if key in ("host", "port", "dbname", "user")}
    return _url("postgresql", parts)


def with_database(dsn: str, name: str) -> str:
    """The same server, account and options, another database; always a URL."""
    return _url("postgresql", {**conninfo_to_dict(dsn), "dbname": name})


def sqlalchemy_url(dsn: str, driver: str = "psycopg") -> str:
    """The form that SQLAlchemy wants: postgresql+psycopg://… or postgresql+asyncpg://…"""
    return _url(f"postgresql+{driver}", conninfo_to_dict(dsn))


def _url(scheme: str, parts: Mapping[str, object]) -> str:
    """A host that is a socket's directory, or several hosts, stand in the query: the place before / takes neither."""
    text = {key: str(value) for key, value in parts.items() if value is not None}
    login, password, name = text.pop("user", ""), text.pop("password", None), text.pop("dbname", "")
    at = quote(login, safe="") + ("" if password is None else f":{quote(password, safe='')}")
    location = "" if "," in text.get("host", "/") or text.get("host", "/").startswith("/") else _location(text)
    query = "&".join(f"{key}={quote(value, safe='/')}" for key, value in text.items())
    return f"{scheme}://{at}{'@' if at else ''}{location}/{quote(name, safe='')}{'?' if query else ''}{query}"


def _location(text: dict[str, str]) -> str:
    """Takes host and port out of `text`."""
    host, port = text.pop("host"), text.pop("port", "")
    return (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
