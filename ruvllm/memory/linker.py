"""Links nodes of a memory as `linking` says: new ones among themselves and with what is near them. Knows no CLI.

A new node is compared with the other new ones, with the nodes nearest to it and with those that share its rarest words,
not with the whole memory: what is linked costs what came, however much is there. Rarity is that among these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ruvllm.errors import InputError
from ruvllm.memory.linking import Linkable, Linked, Linking, linked, touching, used_together
from ruvllm.memory.naming import title_of
from ruvllm.memory.records import Hit, Node
from ruvllm.memory.store import Memory
from ruvllm.progress import Progress, silent

_SHARED = "SELECT id FROM memory.nodes WHERE archived_at IS NULL AND trust <> 'untrusted' ORDER BY id"
_NEAR = 16  # nodes looked at by vector, of each new node
_BY_WORDS = 16  # and by the words of its title
_BATCH = 512  # new nodes linked at once


@dataclass(frozen=True)
class LinkReport:
    """Edges by provenance: `found` all that there are reasons for, `made` those that were not there before."""

    nodes: int
    found: dict[str, int]
    made: dict[str, int]

    @property
    def written(self) -> int:
        return sum(self.made.values())

    def __str__(self) -> str:
        """Says of every kind how many are new, also where none is: so it shows what was looked for and found before."""
        kinds = ", ".join(f"{self.made.get(name, 0)} of {count} by {name}" for name, count in self.found.items())
        return f"{self.nodes} nodes linked: {self.written} new edges ({kinds or 'none found'})"


def link_nodes(
    memory: Memory, ids: Sequence[int], how: Linking | None = None, progress: Progress = silent
) -> LinkReport:
    """Link the live nodes `ids`, as an ingest reports them (AddReport.ids). A second run writes nothing new.

    Raises:
        DatabaseError: Postgres is out of reach; what was linked by then stays.
    """
    wanted = list(dict.fromkeys(ids))
    found, made = Counter[str](), Counter[str]()
    for start in range(0, len(wanted), _BATCH):
        part = wanted[start : start + _BATCH]
        edges = touching(_linked(memory, part, how or Linking()), part)
        found.update(edges.counts)
        made.update(_write(memory, edges))
        progress(min(start + _BATCH, len(wanted)), len(wanted), f"{made.total()} edges")
    return LinkReport(len(wanted), dict(sorted(found.items())), dict(sorted(made.items())))


def link_used(memory: Memory, answers: Iterable[Sequence[int]], least: int = 1) -> LinkReport:
    """Edges among nodes that good answers were made from together: `answers` holds the nodes of each."""
    kept = [list(used) for used in answers]
    made = used_together(kept, least)
    return LinkReport(len({id for used in kept for id in used}), made.counts, _write(memory, made))


def shared_ids(memory: Memory) -> list[int]:
    """Ids of live nodes that every reader may see, rising."""
    with memory.database.transaction() as connection:
        return [int(id) for (id,) in connection.execute(_SHARED)]


def _write(memory: Memory, made: Linked) -> dict[str, int]:
    """How many were new, by provenance."""
    return {by: memory.link_all(edges, by) for by, edges in made.by_provenance()}


def _linked(memory: Memory, ids: Sequence[int], how: Linking) -> Linked:
    nodes = memory.get(ids)
    pool = {node.id: node for node in nodes}
    vectors = memory.vectors([node.id for node in nodes])
    others = {id for each in memory.search_batch(vectors, _NEAR) for id in each.ids.tolist()}
    others |= {hit.node.id for node in nodes for hit in _by_title(memory, node)}
    pool |= {node.id: node for node in memory.get(sorted(others - set(pool)))}
    chosen = [pool[id] for id in sorted(pool) if pool[id].trust != "untrusted"]  # of users' own texts none is linked
    if not chosen:
        return Linked(())
    rows = np.asarray(memory.vectors([node.id for node in chosen]), dtype=np.float32)
    return linked(linkables(chosen), rows, how)


def _by_title(memory: Memory, node: Node) -> list[Hit]:
    title = linkables([node])[0].title
    if not title:
        return []
    try:
        return memory.search_words(title, _BY_WORDS)
    except InputError:  # a title without a visible character
        return []


def linkables(nodes: Sequence[Node]) -> list[Linkable]:
    """Nodes as texts to link.

    A document is what one source has under one first heading (a file of records holds many); a node without headings
    is alone. Its place is its id: pieces were written in a row, and two that meet here by nearness alone do not follow
    one another.
    """
    return [_linkable(node) for node in sorted(nodes, key=lambda node: node.id)]


def _linkable(node: Node) -> Linkable:
    context = node.metadata.get("context", "")
    context = context if isinstance(context, str) else ""
    document = context.split(" > ")[0] or f"node {node.id}"
    return Linkable(node.id, node.text, title_of(node.text, context), node.source, node.id, document)
