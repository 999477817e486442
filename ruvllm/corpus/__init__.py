"""Where the demonstration's passages and questions come from; memory and models do not know this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ruvllm.memory.records import NewNode


def corpus_nodes() -> list[NewNode]:
    """Every passage of the Factbook and of Python's documentation, ready to be added to memory.

    Raises:
        SettingsError: the Factbook's package is not installed.
    """
    from ruvllm.corpus import factbook, pydocs
    from ruvllm.memory.records import NewNode

    return [
        NewNode(
            text=passage.text,
            source=passage.source,
            domain=passage.domain,
            writer="corpus",
            tags=passage.tags,
            metadata={"key": passage.key, "title": passage.title},
        )
        for passage in (*factbook.passages(), *pydocs.passages())
    ]
