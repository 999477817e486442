"""The attention model that is in use here, if any: a file of the state directory and its hash. Knows no registry.

`<state>/attention/<sha256>.safetensors` and `current.json` {"sha256", "version"}. Nothing there: attention is off and
the order before it stands. Only what passed `ruvllm.learning.attention_gate` is put there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ruvllm.attention.model import AttentionModel, from_bytes, read, to_bytes
from ruvllm.errors import ArtifactError
from ruvllm.router.durable import replace_file
from ruvllm.settings import Settings

_CURRENT = "current.json"


def folder(settings: Settings) -> Path:
    return settings.state_dir / "attention"


def install(model: AttentionModel, settings: Settings) -> str:
    """Put `model` in use; returns its sha256. A reader sees the old one or the new one, whatever happens in between.

    Raises:
        ArtifactError: the model would not be read back.
    """
    content = to_bytes(model)
    from_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    replace_file(folder(settings) / f"{digest}.safetensors", content)
    about = json.dumps({"sha256": digest, "version": model.version}).encode()
    replace_file(folder(settings) / _CURRENT, about)
    return digest


def current(settings: Settings) -> AttentionModel | None:
    """The model in use, verified; None where there is none.

    Raises:
        ArtifactError: `current.json` or the file that it names is damaged.
    """
    path = folder(settings) / _CURRENT
    try:
        digest = json.loads(path.read_bytes())["sha256"]
        if not (isinstance(digest, str) and len(digest) == 64 and digest.isalnum()):
            raise ValueError(f"sha256 is {digest!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: damaged ({error}); delete it, and attention is off until it is trained"
        ) from error
    return read(folder(settings) / f"{digest}.safetensors", digest)


def remove(settings: Settings) -> None:
    """Off from here on; model files stay."""
    (folder(settings) / _CURRENT).unlink(missing_ok=True)
