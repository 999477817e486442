"""Which vLLM servers answer for which tier, and the key that they want; opens no connection."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from ruvllm.errors import SettingsError
from ruvllm.settings import Settings

MAX_REPLICAS = 64
_SHAPE = 'want "tier=url,url;tier=url", for example "lfm2-350m=http://127.0.0.1:8101,http://127.0.0.1:8102"'


def servers(settings: Settings) -> dict[str, tuple[str, ...]]:
    """The servers of each tier, by its name, in the setting's order; without a slash at their end.

    Raises:
        SettingsError: RUVLLM_VLLM does not parse, or names a server that must not be asked.
    """
    found: dict[str, tuple[str, ...]] = {}
    for entry in filter(None, (part.strip() for part in settings.vllm.split(";"))):
        tier, equals, urls = entry.partition("=")
        tier = tier.strip()
        if not equals or not tier or "/" in tier:
            raise SettingsError(f"RUVLLM_VLLM: got {entry!r}, {_SHAPE}")
        if tier in found:
            raise SettingsError(f"RUVLLM_VLLM: got the tier {tier} twice; write its servers in one entry, with commas")
        found[tier] = _urls(tier, urls)
    return found


def _urls(tier: str, text: str) -> tuple[str, ...]:
    urls = tuple(checked_url(url.strip()) for url in text.split(",") if url.strip())
    if not urls:
        raise SettingsError(f"RUVLLM_VLLM: got no server for the tier {tier}, {_SHAPE}")
    if len(set(urls)) < len(urls) or len(urls) > MAX_REPLICAS:
        raise SettingsError(f"RUVLLM_VLLM: got {len(urls)} servers for {tier}, want up to {MAX_REPLICAS}, each once")
    return urls


def checked_url(url: str) -> str:
    """`url` as it is asked: scheme, host and port.

    Raises:
        SettingsError: it is no address of a server, holds a password, or is another machine's without TLS.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise SettingsError(f"RUVLLM_VLLM: got {url!r}, want http://host:port ({error})") from error
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url):
        raise SettingsError(f"RUVLLM_VLLM: got {url!r}, want a URL such as http://127.0.0.1:8101")
    if parts.username or parts.password or parts.query or parts.fragment or parts.path.strip("/"):
        raise SettingsError(
            f"RUVLLM_VLLM: got a URL of {host} with more than scheme, host and port; "
            "the path is ours to add, and the key belongs in the file that RUVLLM_VLLM_KEY_FILE names"
        )
    if parts.scheme == "http" and not is_loopback(host):
        raise SettingsError(
            f"RUVLLM_VLLM: got {url!r}, want https:// for another machine: prompts and the key would travel in clear"
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_key_file(settings: Settings) -> Path:
    """The key that `ruvllm vllm up` made for the servers of this checkout."""
    return settings.run_dir / "vllm.key"


def key_for(url: str, settings: Settings) -> str:
    """The API key for the server `url`; '' where it needs none. Ours is told to nobody but this machine.

    Raises:
        SettingsError: the file that the setting names is missing, empty, or open to others.
    """
    if settings.vllm_key_file:
        return read_key(Path(settings.vllm_key_file).expanduser())
    own = own_key_file(settings)
    return read_key(own) if is_loopback(urlsplit(url).hostname or "") and own.is_file() else ""


def read_key(path: Path) -> str:
    """
    Raises:
        SettingsError: no such file, it holds no key, or others than its owner may read it.
    """
    try:
        mode, key = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"RUVLLM_VLLM_KEY_FILE: {path} cannot be read as a key: {error}") from error
    if mode & 0o077:
        raise SettingsError(f"RUVLLM_VLLM_KEY_FILE: {path} is open to others than its owner; run chmod 600 {path}")
    if not key or not key.isprintable() or " " in key:
        raise SettingsError(f"RUVLLM_VLLM_KEY_FILE: {path} holds no key, want one line without blanks")
    return key
