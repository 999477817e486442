"""The context's order by graph attention, where the deciding router's bundle carries a part that passed its gate.

Knows nothing of training or of HTTP. The router's features stay those of the plain search: what it was trained on. Any
fault here costs the order and never the answer: the plain order stands, and the reply says "attention" is missing.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Protocol

from ruvllm.answering.asking import Ask
from ruvllm.answering.perception import Perception
from ruvllm.attention.graph import NODE_FEATURES
from ruvllm.attention.model import AttentionModel
from ruvllm.attention.part import Carrier, carried
from ruvllm.attention.source import MemorySource, TermCache
from ruvllm.attention.stage import Placed, Ranked, Retriever, placed
from ruvllm.errors import ArtifactError, BundleError, DatabaseError, InputError
from ruvllm.memory.records import Hit
from ruvllm.text import whole_question

log = logging.getLogger(__name__)

DEGRADED = "attention"  # mark of an answer whose attention failed
_COSINE = NODE_FEATURES.index("cosine")
_PARTS = 3  # bundles whose part is kept: the champion's, a candidate's, and what is swapped out


class Deciding(Protocol):
    """Who decided the request; `ruvllm.router.policy.Policy` is one."""

    @property
    def runtime(self) -> Carrier | None: ...


class Clock(Protocol):
    def took(self, name: str, since: float) -> None: ...


class Run(Protocol):
    """A request on its way, as `ruvllm.answering.answer` has it."""

    ask: Ask
    hits: list[Hit]
    degraded: list[str]
    attended: tuple[Placed, ...]

    @property
    def policy(self) -> Deciding: ...

    @property
    def clock(self) -> Clock: ...


class Attending:
    """Reorders what was found for a request. Safe among threads."""

    def __init__(self, perception: Perception) -> None:
        self._perception = perception
        self._terms = TermCache()
        self._parts: OrderedDict[str, AttentionModel | None] = OrderedDict()
        self._lock = Lock()

    def ready(self, router: Carrier | None) -> None:
        """Read the part of a router that is about to decide.

        Raises:
            BundleError: it is damaged; a router without a sound part must not replace the one that decides.
        """
        try:
            if self._perception.settings.attention != "off":
                self._part(router)
        except ArtifactError as error:
            raise BundleError(f"router bundle: its attention part: {error}") from error

    def reorder(self, run: Run) -> None:
        """Put `run.hits` into attention's order, once a request; nothing is touched where attention is off."""
        if self._perception.settings.attention == "off" or run.attended or DEGRADED in run.degraded:
            return
        began = time.perf_counter()
        try:
            model = self._part(run.policy.runtime)
            if model is None or not run.hits:
                return
            run.hits, run.attended = self._reordered(run, model)
        except (ArtifactError, DatabaseError, InputError) as error:
            log.warning("answering in the plain order: %s", error)
            run.degraded.append(DEGRADED)
        run.clock.took("attend", began)

    def _part(self, router: Carrier | None) -> AttentionModel | None:
        """Read once a bundle; a bundle without a part costs a look-up."""
        if router is None:
            return None
        with self._lock:
            if router.sha256 not in self._parts:
                self._parts[router.sha256] = self._fitting(carried(router))
                while len(self._parts) > _PARTS:
                    self._parts.popitem(last=False)
            return self._parts[router.sha256]

    def _fitting(self, model: AttentionModel | None) -> AttentionModel | None:
        encoder = self._perception.embedder.id
        if model is not None and model.encoder != encoder:
            log.warning("attention %s was trained on %s, not %s: off", model.version, model.encoder, encoder)
            return None
        return model

    def _reordered(self, run: Run, model: AttentionModel) -> tuple[list[Hit], tuple[Placed, ...]]:
        ask, memory = run.ask, self._perception.memory
        source = MemorySource(memory, ask.writer, terms=self._terms)
        ranked = Retriever(source, model.encoder, model).rank(
            whole_question(ask.question, ask.history), self._perception.vector(ask), ask.writer
        )
        hits = self._hits(run.hits, ranked, self._perception.settings.search_k)
        places = placed(ranked, {hit.node.id: place for place, hit in enumerate(run.hits, start=1)})
        return hits, tuple(places[hit.node.id] for hit in hits)

    def _hits(self, found: Sequence[Hit], ranked: Ranked, most: int) -> list[Hit]:
        """The first `most` of attention's order; texts are read only of nodes that the search did not give."""
        known = {hit.node.id: hit for hit in found}
        ids = ranked.ids[:most].tolist()
        missing = [id for id in ids if id not in known]
        if missing:
            memory = self._perception.memory
            cosines = dict(zip(ranked.graph.ids.tolist(), ranked.graph.nodes[:, _COSINE].tolist(), strict=True))
            nodes = memory.get(missing)
            vectors = memory.vectors([node.id for node in nodes])
            known |= {node.id: Hit(node, cosines[node.id], row) for node, row in zip(nodes, vectors, strict=True)}
        return [known[id] for id in ids if id in known]  # one that was forgotten meanwhile is left out
