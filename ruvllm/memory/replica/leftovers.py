"""Saved bases that nobody will open any more, removed: they hold texts. Knows nothing of what is in them.

What is removed at once: bases of this log by an encoder that is not its encoder any more, and bases of this log from
before it begins (after a `forget` it begins anew: those bases still hold what was forgotten), set aside or not. Another
log may be another database that somebody goes back to tomorrow, so its bases go once nobody opened them for a month.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ruvllm.errors import InputError
from ruvllm.memory.changes import Position
from ruvllm.memory.replica import base, files
from ruvllm.memory.replica.options import ReplicaOptions
from ruvllm.memory.replica.source import Head

UNUSED_S = 30 * 24 * 3600.0


def clear(root: Path, tenant: str, head: Head, options: ReplicaOptions) -> None:
    """Call it once the base of `head` is open; who has another one mapped keeps it."""
    ours = [base.folder_of(root, tenant, head, replace(options, words=words)) for words in (True, False)]
    for folder in ours:
        for path in (*files.published(folder), *files.refused(folder)):
            if not _begins_after(path, head.whole_from):
                files.remove(path)
    files.touch(base.folder_of(root, tenant, head, options))
    for folder in set(ours[0].parents[1].glob("*/*")) - set(ours):
        same_log = folder.name in {each.name for each in ours}
        if same_log or files.unused_s(folder) > UNUSED_S:
            files.remove(folder)


def _begins_after(path: Path, whole_from: int) -> bool:
    """False too where it does not say."""
    try:
        return Position.of(json.loads((path / files.MANIFEST).read_bytes())["position"]).xmin >= whole_from
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return False
