"""Who may ask: the header of a request against the keys as they stood a second ago. Never waits, never asks Postgres.

Knows nothing of HTTP beyond one header's value. A thread of the gateway calls `refresh`; while Postgres is away the
keys that were read last go on counting, with their expiry. An unknown key costs a hash and a comparison, as a known one
does; what was sent never reaches SQL or a log.
"""

from __future__ import annotations

import hmac
import ipaddress
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ruvllm.errors import AuthenticationError, DatabaseError, KeysUnavailable, SettingsError
from ruvllm.serving.admission import CallerLimits
from ruvllm.serving.keys import SCOPES, Caller, KeyStore, Locked, digest_of

if TYPE_CHECKING:
    from ruvllm.settings import Settings

LOCAL = "local"  # key id of who asks without a key, where that is allowed
_SCHEME = "bearer "
_LONGEST = 4096  # characters of a header that are hashed; ours has 67
_NOBODY = b"\0" * 32  # compared with where no row has the digest
_MARKER = "keys-were-made"  # in run_dir: the first key was seen; a start without Postgres must know


class Door:
    """One gateway's. `host` is what it listens on; `clock` says the time of day.

    access    no key sent
    open      let in as "local": the settings' tenant, every scope. Only where the gateway listens on loopback alone
    keys      401
    auto      as open on loopback until the first key is made, from then on as keys, even if all are revoked;
              elsewhere as keys

    A key that is sent is checked in every case.
    """

    def __init__(
        self,
        settings: Settings,
        store: KeyStore | None,
        host: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Raises:
            SettingsError: access is open, and others than this machine could ask.
        """
        host = settings.host if host is None else host
        self._settings, self._store, self._clock = settings, store, clock
        self._loopback = is_loopback(host)
        if settings.access == "open" and not self._loopback:
            raise SettingsError(
                f"RUVLLM_ACCESS: got open with RUVLLM_HOST {host}, want keys there: everybody in reach could ask; "
                "make one with ruvllm keys create"
            )
        self._keys: Mapping[bytes, Locked] | None = None
        self._refreshing = threading.Lock()
        self._marker = settings.run_dir / _MARKER
        self._marked = self._marker.exists()
        self._local = Caller(LOCAL, settings.tenant, frozenset(SCOPES), CallerLimits(concurrency=None))

    def refresh(self) -> None:
        """Read the keys anew.

        Raises:
            DatabaseError: Postgres is away; what was read before stays.
        """
        if self._store is None:
            return
        with self._refreshing:
            self._keys = {each.digest: each for each in self._store.snapshot()}
            if self._keys and not self._marked:
                self._marker.parent.mkdir(parents=True, exist_ok=True)
                self._marker.touch()
                self._marked = True

    @property
    def tenants(self) -> tuple[str, ...]:
        """The settings' tenant, and every one that a key was made for."""
        keys = self._keys.values() if self._keys else ()
        return tuple(dict.fromkeys([self._settings.tenant, *(each.record.tenant for each in keys)]))

    def caller(self, authorization: str | None, peer: str | None = None, site: str | None = None) -> Caller:
        """Who sent the header `Authorization`, None where there was none.

        Args:
            peer: the address they come from.
            site: the header `Host`, what they take this gateway for. A page of the web that has its own name resolved
                to this machine (DNS rebinding) comes from a loopback address too, but under that name.

        Raises:
            AuthenticationError: no key, or none that is known, valid and in time.
            KeysUnavailable: Postgres has been away since the start.
        """
        if authorization is None:
            return self._without_key(peer, site)
        return self._known(_token(authorization))

    def _without_key(self, peer: str | None, site: str | None) -> Caller:
        if self._is_open(peer):
            if site is not None and not is_loopback(_name(site)):
                raise AuthenticationError(
                    f"Host: got {site[:100]!r}, want localhost or a loopback address: without an API key a page of the "
                    "web could ask under a name of its own; ruvllm keys create makes a key, which may ask by any name"
                )
            return self._local
        raise AuthenticationError('no API key: want the header "Authorization: Bearer …"; ruvllm keys create makes one')

    def _is_open(self, peer: str | None) -> bool:
        if not self._loopback or (peer is not None and not is_loopback(peer)) or self._settings.access == "keys":
            return False
        # auto: the marker stands in for the rows where these were never read, so an outage opens nothing
        return self._settings.access == "open" or not (self._keys or self._marked)

    def _known(self, token: str) -> Caller:
        if self._keys is None:
            raise KeysUnavailable("API keys: Postgres has been away since the start, so none can be checked")
        digest = digest_of(token)
        found = self._keys.get(digest)
        # a look-up by digest takes a time that says nothing of the key; the comparison is constant in time besides
        same = hmac.compare_digest(digest, found.digest if found else _NOBODY)
        if found is None or not same:
            raise AuthenticationError("this API key is not known here; ruvllm keys list shows which are")
        if not found.record.valid_at(self._clock()):
            why = "was revoked" if found.record.revoked_at else "has expired"
            raise AuthenticationError(f"API key {found.record.id} {why}; ruvllm keys create makes another")
        return found.record.caller


def watch(door: Door) -> str | None:
    """Refresh `door`; why it could not be, None where it was."""
    try:
        door.refresh()
    except DatabaseError as error:
        return str(error)
    return None


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches `host`; names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _name(site: str) -> str:
    """The host in a header `Host`: without its port, and without the brackets of IPv6."""
    return site[1:].partition("]")[0] if site.startswith("[") else site.partition(":")[0].lower().removesuffix(".")


def _token(authorization: str) -> str:
    """The key in the header; a header of any other form gives a text that is no key."""
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise AuthenticationError('Authorization: want "Bearer" and an API key')
    token = authorization[len(_SCHEME) :].strip()
    if not token or len(token) > _LONGEST:
        raise AuthenticationError('Authorization: want "Bearer" and an API key')
    return token
