"""API keys: who asks, for which tenant, what they may and how much. Kept as digests; the key itself is shown once.

Knows nothing of HTTP. A key is 256 random bits behind its id, so one SHA-256 is enough and no guess is worth its time.
Rows are written under the tenant's row-level security; the door reads digests of all tenants, by a policy of its own.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg.rows import dict_row

from ruvllm.database.pool import Database
from ruvllm.errors import ForbiddenError, InputError
from ruvllm.serving.admission import CallerLimits
from ruvllm.text import clean_text

SCOPES = ("ask", "feedback", "memory", "admin")
_PREFIX = "ruvllm"
_KEY = re.compile(rf"{_PREFIX}-([0-9a-f]{{16}})-([A-Za-z0-9_-]{{43}})")
_LIMITS = ("concurrency", "requests_per_minute", "tokens_per_minute")
_MOST = 2**31 - 1
_NAME_LIMIT = 200


@dataclass(frozen=True)
class Caller:
    """Who asks. `key_id` may be shown and logged; everything they read and write is of `tenant`."""

    key_id: str
    tenant: str
    scopes: frozenset[str]
    limits: CallerLimits

    def require(self, scope: str) -> None:
        """
        Raises:
            ForbiddenError: the key has no such scope.
        """
        if scope not in self.scopes:
            have = ", ".join(sorted(self.scopes)) or "none"
            raise ForbiddenError(f'key {self.key_id}: has {have}, this needs "{scope}"; use a key with that scope')


@dataclass(frozen=True)
class KeyRecord:
    """A row, without its digest."""

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    limits: CallerLimits
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def valid_at(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def caller(self) -> Caller:
        return Caller(self.id, self.tenant, frozenset(self.scopes), self.limits)


@dataclass(frozen=True)
class Locked:
    """A key's digest beside whose it is."""

    digest: bytes
    record: KeyRecord


def digest_of(key: str) -> bytes:
    """(32,) bytes of any text; what is no key of ours has a digest too, that no row holds."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def looks_like_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


class KeyStore:
    """The keys in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        tenant: str,
        scopes: Sequence[str] = ("ask", "feedback"),
        name: str = "",
        limits: CallerLimits | None = None,
        expires_s: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """A new key; the text is nowhere else, so whoever calls this shows it now or never.

        Args:
            expires_s: seconds from now; None: it does not expire.

        Raises:
            InputError: a scope, limit, name or time is unacceptable.
        """
        values = _checked(tenant, scopes, name, limits or CallerLimits(), expires_s)
        id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        key = f"{_PREFIX}-{id}-{secret}"
        with self._database.transaction(values["tenant"]) as connection:
            cursor = connection.cursor(row_factory=dict_row)
            row = cursor.execute(_INSERT, {**values, "id": id, "digest": digest_of(key)}).fetchone()
        assert row is not None  # INSERT … RETURNING
        return _record(row), key

    def list(self) -> Sequence[KeyRecord]:
        """Every key of every tenant, the newest last; revoked and expired ones too."""
        return [each.record for each in self.snapshot()]

    def revoke(self, key_id: str) -> KeyRecord:
        """Close the key for good; gateways hear of it within a second or two.

        Raises:
            InputError: no such key.
        """
        found = next((each for each in self.list() if each.id == key_id), None)
        if found is None:
            raise InputError(f"key {key_id!r}: there is none; ruvllm keys list shows the ids")
        with self._database.transaction(found.tenant) as connection:
            row = connection.cursor(row_factory=dict_row).execute(_REVOKE, {"id": key_id}).fetchone()
        assert row is not None  # it was there, and keys are never deleted
        return _record(row)

    def snapshot(self) -> Sequence[Locked]:
        """Every key, as the door needs them.

        Raises:
            DatabaseError: Postgres is away.
        """
        with self._database.transaction() as connection:
            connection.execute("SELECT set_config('app.door', 'keys', true)")
            rows = connection.cursor(row_factory=dict_row).execute(_ALL).fetchall()
        return [Locked(bytes(row.pop("digest")), _record(row)) for row in rows]


def _checked(
    tenant: str, scopes: Sequence[str], name: str, limits: CallerLimits, expires_s: float | None
) -> dict[str, Any]:
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InputError(f"scopes: got {', '.join(unknown) or 'none'}, want some of {', '.join(SCOPES)}")
    for limit in _LIMITS:
        value = getattr(limits, limit)
        if value is not None and not 1 <= value <= _MOST:
            raise InputError(f"{limit}: got {value}, want 1 or more")
    if expires_s is not None and not 0 < expires_s < timedelta(days=36500).total_seconds():
        raise InputError(f"expiry: got {expires_s:g} s from now, want more than 0 s and less than a century")
    return {
        "tenant": clean_text(tenant, "tenant", _NAME_LIMIT),
        "name": clean_text(name, "name of the key", _NAME_LIMIT) if name else "",
        "scopes": sorted(set(scopes)),
        "expires_at": None if expires_s is None else datetime.now(UTC) + timedelta(seconds=expires_s),
        **{limit: getattr(limits, limit) for limit in _LIMITS},
    }


def _record(row: Mapping[str, Any]) -> KeyRecord:
    names = ("id", "tenant", "name", "created_at", "expires_at", "revoked_at")
    limits = CallerLimits(**{name: row[name] for name in _LIMITS})
    return KeyRecord(scopes=tuple(row["scopes"]), limits=limits, **{name: row[name] for name in names})


_SHOWN = f"id, tenant, name, scopes, {', '.join(_LIMITS)}, created_at, expires_at, revoked_at"
_INSERT = f"""
    INSERT INTO serving.api_keys (id, tenant, digest, name, scopes, {", ".join(_LIMITS)}, expires_at)
    VALUES (%(id)s, %(tenant)s, %(digest)s, %(name)s, %(scopes)s, %(concurrency)s, %(requests_per_minute)s,
            %(tokens_per_minute)s, %(expires_at)s)
    RETURNING {_SHOWN}
"""  # noqa: S608  # names are ours, values are parameters
_REVOKE = f"UPDATE serving.api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = %(id)s RETURNING {_SHOWN}"  # noqa: S608
_ALL = f"SELECT digest, {_SHOWN} FROM serving.api_keys ORDER BY created_at, id"  # noqa: S608  # names are ours
