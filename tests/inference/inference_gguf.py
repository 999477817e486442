"""The beginning of a GGUF, packed by hand from the format's description: an independent writer for tests."""

from __future__ import annotations

import struct


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def beginning(architecture: str = "lfm2", layers: int = 16, width: int = 1024, version: int = 3) -> bytes:
    """Magic, version, no tensors, five keys."""
    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text("general.name") + struct.pack("<I", 8) + text("made by a test"),
        text(f"{architecture}.block_count") + struct.pack("<II", 4, layers),
        text(f"{architecture}.embedding_length") + struct.pack("<II", 4, width),
        text(f"{architecture}.attention.head_count_kv") + struct.pack("<IIQ3i", 9, 5, 3, 0, 8, 0),
    ]
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(keys)) + b"".join(keys)
