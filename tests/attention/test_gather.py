"""From a question to its neighbourhood: what features say, what is bounded, and that both memories agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ruvllm.attention.arrays import ArraySource
from ruvllm.attention.gather import Reach, gather
from ruvllm.attention.graph import EDGE_FEATURES, MAX_EDGES, MAX_NODES, NODE_FEATURES, SELF, Subgraph
from ruvllm.attention.source import MemorySource, TermCache
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import InputError
from ruvllm.memory.records import Edge, Found, NewNode, Walk
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings

EMBEDDER = EmbeddingAdapter(HashingEncoder())
TEXTS = (
    "Gull Pier\nGull Pier is the longest pier of the harbour of Velm.",
    "Velm\nVelm is a harbour town founded by Ida Torsen in 1911.",
    "Ida Torsen\nIda Torsen was a builder of lighthouses born in Camber.",
    "Camber\nCamber is a village known for its clocks.",
    "Orrin Museum\nThe Orrin Museum keeps nine hundred clocks.",
    "Tessa Line\nThe Tessa Line is a green railway with many stations.",
)
EDGES: tuple[Edge, ...] = ((0, 1, "Cites", 0.9), (1, 2, "Cites", 0.8), (2, 3, "Cites", 0.7), (3, 4, "SameTopic", 0.3))
QUESTION = "Who founded the town of Gull Pier?"


@pytest.fixture
def source(tmp_path: Path) -> ArraySource:
    return ArraySource(TEXTS, EMBEDDER.embed(TEXTS), EDGES, tmp_path / "words")


def asked(source: ArraySource, question: str = QUESTION, **how: object) -> Subgraph:
    return gather(source, question, EMBEDDER.embed_one(question), Reach(**how))  # type: ignore[arg-type]


def column(graph: Subgraph, name: str) -> dict[int, float]:
    return dict(zip(graph.ids.tolist(), graph.nodes[:, NODE_FEATURES.index(name)].tolist(), strict=True))


def test_seeds_bring_what_they_lead_to(source: ArraySource) -> None:
    graph = asked(source, seeds=1)
    hops = dict(zip(graph.ids.tolist(), graph.hop.tolist(), strict=True))
    assert hops == {0: 0, 1: 1, 2: 2}
    assert asked(source, seeds=1, edges=False).ids.tolist() == [0]


def test_reach_is_the_best_way_times_the_seeds_score(source: ArraySource) -> None:
    graph = asked(source, seeds=1)
    fused, reach = column(graph, "fused"), column(graph, "reach")
    assert fused[0] == pytest.approx(2.0)  # first by meaning and by words
    assert reach[1] == pytest.approx(2.0 * 0.9)
    assert reach[2] == pytest.approx(2.0 * 0.9 * 0.8)
    prior = dict(zip(graph.ids.tolist(), graph.prior.tolist(), strict=True))
    assert prior[1] == pytest.approx(max(fused[1], 0.9))  # its own score, or half of the way's strength
    assert graph.prior.tolist() == sorted(graph.prior, reverse=True)


def test_cover_counts_the_questions_words_by_rarity(source: ArraySource) -> None:
    graph = asked(source, "pier lighthouse", seeds=6)
    cover = column(graph, "cover")
    assert cover[0] > 0  # pier
    assert cover[2] > 0  # lighthouse, a plural there
    assert cover[5] == 0
    m = _message(graph, 0, 1)
    assert graph.messages[m, EDGE_FEATURES.index("gain")] == pytest.approx(0.0)  # Velm adds no word to Gull Pier
    both = _message(graph, 2, 1)
    assert graph.messages[both, EDGE_FEATURES.index("cover")] == pytest.approx(cover[2])


def _message(graph: Subgraph, source: int, target: int) -> int:
    place = {id: i for i, id in enumerate(graph.ids.tolist())}
    found = np.flatnonzero((graph.source == place[source]) & (graph.target == place[target]) & (graph.code != SELF))
    return int(found[0])


def test_joint_is_the_cosine_of_the_pair(source: ArraySource) -> None:
    graph = asked(source, seeds=6)
    vectors, asked_ = EMBEDDER.embed(TEXTS), EMBEDDER.embed_one(QUESTION)
    pair = vectors[0] + vectors[1]
    wanted = float(pair @ asked_ / np.linalg.norm(pair))
    got = graph.messages[_message(graph, 0, 1), EDGE_FEATURES.index("joint")]
    assert got == pytest.approx(wanted, abs=1e-5)


def test_an_empty_memory_is_an_empty_neighbourhood(tmp_path: Path) -> None:
    empty = ArraySource((), np.empty((0, 384), np.float32), (), tmp_path / "words")
    graph = asked(empty)
    assert graph.n == 0
    assert len(graph.source) == 0


def test_a_question_of_no_words_is_asked_by_meaning(source: ArraySource) -> None:
    graph = asked(source, "???")
    assert graph.n > 0
    assert np.isfinite(graph.nodes).all()


@pytest.mark.parametrize("wrong", [np.full(384, np.nan, np.float32), np.zeros((2, 384), np.float32)])
def test_a_broken_question_vector_is_refused(source: ArraySource, wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="question vector"):
        gather(source, QUESTION, wrong)


def test_ten_thousand_nodes_around_a_hub_are_cut(tmp_path: Path) -> None:
    """10,000 nodes with one vector and one text, all tied to the first: every tie is broken by id."""
    n = 10_000
    vectors = np.repeat(EMBEDDER.embed(["same text here"]), n, axis=0)
    star: list[Edge] = [(0, i, "Cites", 0.5) for i in range(1, n)]
    big = ArraySource(["same text here"] * n, vectors, star, tmp_path / "words")
    graph = asked(big, "same text", limit=10_000, fan=10_000)
    assert graph.n == MAX_NODES
    assert len(graph.source) <= 2 * MAX_EDGES + MAX_NODES
    for array in (graph.nodes, graph.messages, graph.prior, graph.product, graph.time):
        assert np.isfinite(array).all()
    again = asked(big, "same text", limit=10_000, fan=10_000)
    assert graph.ids.tolist() == again.ids.tolist()


def test_reach_is_checked() -> None:
    with pytest.raises(InputError, match="seeds"):
        Reach(seeds=0)


# --- a real memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(database: Database, settings: Settings) -> Memory:
    return Memory(database, EMBEDDER, settings)


def test_postgres_gives_the_same_neighbourhood(memory: Memory, source: ArraySource) -> None:
    """By meaning alone: full text of Postgres and BM25 weigh words differently."""
    ids = memory.add([NewNode(text) for text in TEXTS]).ids
    memory.link_all([(ids[a], ids[b], rel, weight) for a, b, rel, weight in EDGES], "test")
    place = {id: i for i, id in enumerate(ids)}
    theirs = gather(_NoWords(memory), QUESTION, EMBEDDER.embed_one(QUESTION), Reach(seeds=2))
    ours = gather(_Wordless(source), QUESTION, EMBEDDER.embed_one(QUESTION), Reach(seeds=2))
    assert [place[id] for id in theirs.ids.tolist()] == ours.ids.tolist()
    assert (theirs.source.tolist(), theirs.code.tolist()) == (ours.source.tolist(), ours.code.tolist())
    recency = NODE_FEATURES.index("recency")
    np.testing.assert_allclose(np.delete(theirs.nodes, recency, 1), np.delete(ours.nodes, recency, 1), atol=2e-3)
    np.testing.assert_allclose(theirs.messages, ours.messages, atol=2e-3)  # halves there, floats here


class _NoWords(MemorySource):
    def words(self, text: str, k: int) -> Found:
        return super().words("qqqqqq", k)


class _Wordless:
    """An array memory that finds nothing by words."""

    def __init__(self, source: ArraySource) -> None:
        self._source = source

    def words(self, text: str, k: int) -> Found:
        return self._source.words("qqqqqq", k)

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)


def test_walks_agree_with_postgres(memory: Memory, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = [f"node number {i} about topic {i % 7}" for i in range(60)]
    ids = memory.add([NewNode(text) for text in texts]).ids
    made: list[Edge] = []
    for a, b in rng.integers(0, 60, (200, 2)).tolist():
        if a != b and all(edge[:2] != (a, b) for edge in made):
            made.append((a, b, ("Cites", "Follows", "SameTopic")[(a + b) % 3], round(float(rng.random()), 3)))
    memory.link_all([(ids[a], ids[b], rel, weight) for a, b, rel, weight in sorted(made)], "test")
    arrays = ArraySource(texts, EMBEDDER.embed(texts), sorted(made), tmp_path / "words")
    for how in (Walk(), Walk(hops=3, fan=3, frontier=5, limit=20), Walk(relations=("Cites",), fan=2), Walk(hops=0)):
        theirs, ours = memory.walk([ids[4], ids[9]], how), arrays.walk([4, 9], how)
        assert (theirs.ids - ids[0]).tolist() == ours.ids.tolist(), how
        assert theirs.hops.tolist() == ours.hops.tolist()
        np.testing.assert_allclose(theirs.scores, ours.scores, rtol=1e-6)
        assert [(a - ids[0], b - ids[0], rel) for a, b, rel, _ in theirs.edges] == [e[:3] for e in ours.edges]


def test_words_of_a_node_are_read_once(memory: Memory) -> None:
    ids = memory.add([NewNode(text) for text in TEXTS]).ids
    terms = TermCache()
    reading = _Counting(memory, terms)
    for _ in range(2):
        gather(reading, QUESTION, EMBEDDER.embed_one(QUESTION), Reach(seeds=6))
    assert reading.read == len(ids)


class _Counting(MemorySource):
    read = 0

    def __init__(self, memory: Memory, terms: TermCache) -> None:
        super().__init__(memory, terms=terms)
        get = memory.get

        def counted(ids):  # type: ignore[no-untyped-def]
            self.read += len(ids)
            return get(ids)

        memory.get = counted  # type: ignore[method-assign]


def test_a_stranger_sees_no_untrusted_node(memory: Memory) -> None:
    secret = NewNode("The secret of Gull Pier is a town that nobody founded.", trust="untrusted", writer="ida")
    known, hidden = memory.add([NewNode(TEXTS[0]), secret]).ids
    memory.link_all([(known, hidden, "Cites", 1.0)], "test")
    vector = EMBEDDER.embed_one(QUESTION)
    assert hidden not in gather(MemorySource(memory), QUESTION, vector).ids.tolist()
    assert hidden in gather(MemorySource(memory, "ida"), QUESTION, vector, reader="ida").ids.tolist()


def test_the_term_cache_is_bounded() -> None:
    terms = TermCache(limit=2)
    for key in range(3):
        terms.learn(key, f"text {key}")
    assert terms.known(0) is None
    assert terms.known(2) is not None


def test_seeds_alone_have_messages_to_themselves_only(source: ArraySource) -> None:
    graph = asked(source, edges=False)
    assert set(graph.code.tolist()) == {SELF}
    assert replace(graph).n == len(TEXTS)
