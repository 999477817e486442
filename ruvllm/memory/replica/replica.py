"""The replica of one tenant's memory: opened from its saved base or built, kept level with Postgres, asked in process.

It answers or says why not (ReplicaUnavailable), so that whoever asks can ask Postgres; it never answers from what it
knows to be older than its bound. Knows nothing of encoders, of HTTP or of how Postgres would answer.

Three threads at most: whoever asks, a follower that reads the log of changes, and, when too much has come since the
base was made, a builder. The builder's new base is caught up before it takes the old one's place between two searches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.database.pool import Database
from ruvllm.errors import ArtifactError, DatabaseError, InputError, ReplicaUnavailable
from ruvllm.memory import hnsw
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import Found, Neighbourhood, Node, NodeColumns, Vector, Walk
from ruvllm.memory.replica import base, files, leftovers, source
from ruvllm.memory.replica.follower import Follower
from ruvllm.memory.replica.options import ReplicaOptions, ReplicaState
from ruvllm.memory.replica.view import View
from ruvllm.progress import Progress, silent

Ids = Sequence[int] | NDArray[np.int64]

_PLAIN = Filter()
_AGAIN_S = 60.0  # after a build that failed, before the next that nobody asked for
_MOST_HOLES = 0.2  # share of the graph's rows without a node from which on it is linked anew from the start


class Replica:
    """Safe to share between threads. Make it with `open`."""

    def __init__(self, database: Database, folder: Path, options: ReplicaOptions) -> None:
        self.database, self.options, self._root = database, options, folder
        self._view: View | None = None
        self._level_at = 0.0  # monotonic: when the snapshot was taken that the view is level with
        self._trouble = "it has no base yet"
        self._closed = False
        self._following = threading.Lock()  # who holds it may write to the view or put another in its place
        self._builder: threading.Thread | None = None
        self._build_from = 0.0  # monotonic: not before
        self._starting = threading.Lock()
        self._follower: Follower | None = None

    @classmethod
    def open(
        cls,
        database: Database,
        folder: Path,
        options: ReplicaOptions | None = None,
        progress: Progress = silent,
    ) -> Replica:
        """Map the saved base that fits, else build one (in the background without `options.wait`), and catch up.

        Raises:
            DatabaseError: Postgres is out of reach, so whether the saved base is this memory's is not known.
        """
        replica = cls(database, folder, options or ReplicaOptions())
        if replica.options.wait:
            replica._establish(progress)
        else:
            replica._start_builder()
        if replica.options.poll_s > 0:
            replica._follower = Follower(database, replica._follow_quietly, replica.options.poll_s)
            replica._follower.start()
        return replica

    def close(self) -> None:
        """Ends its threads; a base that is being built is given up."""
        self._closed = True
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        if self._builder is not None:
            self._builder.join()
        self._view, self._trouble = None, "it was closed"

    # -- what is asked

    def search(
        self,
        vector: Vector,
        k: int,
        filter: Filter | None = None,
        ef: int | None = None,
        exact: bool = False,
        after: int | None = None,
    ) -> Found:
        """The `k` live nodes nearest to the unit vector `vector` (d,) that pass `filter`, by inner product.

        `ef` candidates are kept on the way, by default what hnsw.ef_search says; `exact` compares every row instead.
        With `after`, the token of a write (its transaction's id), that write is seen.

        Raises:
            InputError: `vector` or `k` is not acceptable.
            ReplicaUnavailable: it cannot answer now; Postgres can.
        """
        view = self._ready(after)
        _check(view, vector[None], k)
        return view.search(vector[None], k, filter or _PLAIN, ef, exact)[0]

    def search_batch(
        self, vectors: Vector, k: int, filter: Filter | None = None, ef: int | None = None, exact: bool = False
    ) -> list[Found]:
        """`search` for each of `vectors` (n, d), as of one moment."""
        view = self._ready()
        _check(view, vectors, k)
        return view.search(vectors, k, filter or _PLAIN, ef, exact, self.options.batch_threads)

    def search_words(self, query: str, k: int, filter: Filter | None = None, after: int | None = None) -> Found:
        """The k best by BM25 among nodes that share a word with `query`; `similarities` are the scores."""
        view = self._ready(after)
        if view.base.words is None:
            raise ReplicaUnavailable("replica: it keeps no words (ReplicaOptions.words); ask Postgres")
        return view.words(query, k, filter or _PLAIN)

    def walk(self, seeds: Ids, walk: Walk | None = None, after: int | None = None) -> Neighbourhood:
        """The neighbourhood of the nodes `seeds`."""
        return self._ready(after).walk(seeds, walk or Walk())

    def nodes(self, ids: Ids) -> list[Node]:
        """Live nodes in the order of `ids`; it holds no archived ones, so those are left out like unknown ones."""
        return self._ready().get(ids)

    def columns(self, ids: Ids) -> NodeColumns:
        """What is to be known of the nodes that `nodes` gives, without their texts: a tenth of the time."""
        return self._ready().columns(ids)

    def vectors(self, ids: Ids) -> Vector:
        """(n, d) vectors of live nodes.

        Raises:
            ReplicaUnavailable: one is archived or unknown; Postgres may have it.
        """
        vectors, live = self._ready().vectors(ids)
        if not live.all():
            raise ReplicaUnavailable(f"replica: node {ids[int(np.argmin(live))]} is not live; ask Postgres")
        return vectors

    @property
    def state(self) -> ReplicaState:
        view, trouble = self._view, self._unfit()
        staleness = time.monotonic() - self._level_at if view else None
        reason = trouble or self._trouble
        if view is None:
            return ReplicaState(False, reason, 0, 0, 0, staleness, 0, 0)
        held, position = view.held, view.position.xmin
        return ReplicaState(
            not trouble, reason, held.nodes, held.delta, held.tombstones, staleness, held.bytes, position, view.stamp
        )

    # -- keeping level

    def follow(self, exported: str = "") -> None:
        """Catch up with Postgres as it is now, or as an exported snapshot shows it.

        Raises:
            ReplicaUnavailable: Postgres cannot be read, or a new base has to be built first, which was begun.
        """
        with self._following:
            self._follow(exported)

    def rebuild(self, progress: Progress = silent) -> None:
        """Make a new base of what Postgres holds now, and change over to it. Searches go on meanwhile."""
        self._establish(progress, anew=True)

    def _follow(self, exported: str = "") -> None:
        view = self._view
        if view is None:
            raise ReplicaUnavailable(f"replica: {self._trouble}; ask Postgres")
        try:
            self._level_at = _catch_up(self.database, view, exported)
            self._trouble = ""
        except ArtifactError as error:  # what Postgres holds now did not grow out of what we hold
            self._view, self._trouble = None, str(error)
            self._start_builder()
            raise ReplicaUnavailable(f"replica: {error}; it is built anew, ask Postgres") from error
        except DatabaseError as error:
            self._trouble = str(error)
            raise ReplicaUnavailable(f"replica: it cannot follow: {error}") from error
        if self.options.outgrown(view.base.graph.n, max(view.held.delta, view.held.tombstones - view.base_holes)):
            self._start_builder()

    def _follow_quietly(self) -> None:
        """The follower's: what went wrong is in `state`, and searches stop once the bound is passed."""
        try:
            self.follow()
        except ReplicaUnavailable:
            if self._view is None:
                self._start_builder()

    def _see(self, view: View, after: int) -> View:
        """A view that holds the write `after`."""
        with self._following:
            if self._view is view and not view.position.has(after):
                self._follow()
        current = self._view
        if current is None or not current.position.has(after):
            raise ReplicaUnavailable(f"replica: transaction {after} has not ended yet; ask Postgres")
        return current

    # -- whether it may answer

    def _ready(self, after: int | None = None) -> View:
        view = self._view
        if (trouble := self._unfit()) or view is None:
            raise ReplicaUnavailable(f"replica: {trouble}; ask Postgres")
        return view if after is None or view.position.has(after) else self._see(view, after)

    def _unfit(self) -> str:
        view = self._view
        if self._closed or view is None:
            return "it was closed" if self._closed else self._trouble
        behind = time.monotonic() - self._level_at
        if behind > self.options.max_staleness_s:
            return f"it is {behind:.1f} s behind, more than {self.options.max_staleness_s} s: {self._trouble or 'busy'}"
        if self.options.memory_budget and (held := view.held.bytes) > self.options.memory_budget:
            return f"it holds {held:,} bytes, more than its budget of {self.options.memory_budget:,}"
        return ""

    # -- the base

    def _start_builder(self) -> None:
        with self._starting:
            if self._closed or time.monotonic() < self._build_from:
                return
            if self._builder is None or not self._builder.is_alive():
                anew = self._view is not None
                self._builder = threading.Thread(
                    target=self._build_quietly, args=(anew,), name="replica-builder", daemon=True
                )
                self._builder.start()

    def _build_quietly(self, anew: bool) -> None:
        try:
            self._establish(self._unless_closed, anew)
        except (DatabaseError, ArtifactError, OSError) as error:
            self._trouble = f"its base could not be built: {error}"
            self._build_from = time.monotonic() + _AGAIN_S

    def _unless_closed(self, done: int, total: int, note: str = "") -> None:
        """The builder's progress: `close` does not wait for an index."""
        if self._closed:
            raise ReplicaUnavailable("replica: it was closed while its base was built")

    def _establish(self, progress: Progress, anew: bool = False) -> None:
        """Open the saved base, or with `anew` or without one build it; catch up; put it in place."""
        with source.snapshot(self.database) as connection:
            head = source.head(connection)
        folder = base.folder_of(self._root, self.database.tenant, head, self.options)
        opened = None if anew else base.latest(folder, self.database.tenant, head, self.options)
        if opened is None:
            with files.builders_lock(folder):
                # while we waited for the lock, another process may have built it
                opened = self._newer(base.latest(folder, self.database.tenant, head, self.options))
                opened = opened or self._built(folder, progress)
        view = View(opened)
        _catch_up(self.database, view)  # the long way, while the old one still answers
        with self._following:
            self._level_at = _catch_up(self.database, view)
            self._view, self._trouble = view, ""
        leftovers.clear(self._root, self.database.tenant, head, self.options)

    def _newer(self, found: base.Base | None) -> base.Base | None:
        """`found`, where it is of a later time than the base in use."""
        view = self._view
        older = found is not None and view is not None and found.position.xmin <= view.base.position.xmin
        return None if older else found

    def _built(self, folder: Path, progress: Progress) -> base.Base:
        view = self._view
        few_holes = view is not None and view.held.tombstones <= _MOST_HOLES * view.base.graph.n
        path = base.build(self.database, folder, self.options, view.base if view and few_holes else None, progress)
        with source.snapshot(self.database) as connection:
            head = source.head(connection)
        return base.open_base(path, self.database.tenant, head, self.options)


def _catch_up(database: Database, view: View, exported: str = "") -> float:
    """Apply what came since the view's position; returns the time at which Postgres was as the view is now.

    Raises:
        ArtifactError: the log does not lead from the view's position to now.
    """
    started = time.monotonic()
    with source.snapshot(database, exported) as connection:
        news = source.news(connection, view.position, lineage=bool(view.base.identity["system"]))
    base.check_grown(view.base, view.position, news.head)
    if news.head.position.xmax < view.position.xmax:  # an exported snapshot of before: the view has more already
        return started
    if news.nodes or news.gone or news.edges:
        view.apply(news.nodes, news.gone, news.edges)
    view.position = news.head.position
    return started


def _check(view: View, vectors: Vector, k: int) -> None:
    if not 1 <= k <= hnsw.MAX_EF_SEARCH:
        raise InputError(f"k: got {k}, want 1 to {hnsw.MAX_EF_SEARCH}")
    if vectors.ndim != 2 or vectors.shape[1] != view.base.graph.dimension:
        raise InputError(f"vector: got shape {vectors.shape[1:]}, want ({view.base.graph.dimension},)")
    for squared in np.einsum("qd,qd->q", vectors, vectors, dtype=np.float64).tolist():
        if not 0.98**2 <= squared <= 1.02**2:  # NaN fails too
            raise InputError(f"vector: got length {squared**0.5:.3g}, want a unit vector")
