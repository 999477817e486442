"""Token counts that are kept: what was counted is not asked again, in whatever order it comes."""

from __future__ import annotations

import pytest

from ruvllm.inference.counts import TokenCounts
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.supervised import SupervisedModel
from ruvllm.inference.tiers import load_catalogue


class Counter:
    """Counts words, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: list[str]) -> list[int]:
        self.asked.append(texts)
        return [len(text.split()) for text in texts]


@pytest.fixture
def count() -> Counter:
    return Counter()


def test_only_what_is_new_is_counted(count: Counter) -> None:
    counts = TokenCounts()
    assert counts.of(["one", "two words"], count) == [1, 2]
    assert counts.of(["two words", "now three words", "one"], count) == [2, 3, 1]
    assert count.asked == [["one", "two words"], ["now three words"]]


def test_a_text_that_comes_twice_is_counted_once(count: Counter) -> None:
    assert TokenCounts().of(["a b", "c", "a b"], count) == [2, 1, 2]
    assert count.asked == [["a b", "c"]]


def test_nothing_and_known_texts_ask_nobody(count: Counter) -> None:
    counts = TokenCounts()
    counts.of(["one"], count)
    assert counts.of([], count) == []
    assert counts.of(["one"], count) == [1]
    assert len(count.asked) == 1


def test_the_longest_unused_are_forgotten(count: Counter) -> None:
    counts = TokenCounts(kept=2)
    counts.of(["a", "b"], count)
    counts.of(["a"], count)  # b is the one that was not used since
    counts.of(["c"], count)
    counts.of(["a", "c"], count)
    assert len(count.asked) == 2
    counts.of(["b"], count)
    assert count.asked[-1] == ["b"]


def test_more_texts_than_are_kept_still_have_their_counts(count: Counter) -> None:
    texts = [f"{'w ' * size}end{size}" for size in range(5)]
    assert TokenCounts(kept=2).of(texts, count) == [1, 2, 3, 4, 5]


def test_a_count_that_fails_keeps_nothing(count: Counter) -> None:
    def broken(texts: list[str]) -> list[int]:
        raise RuntimeError("the model died")

    counts = TokenCounts()
    with pytest.raises(RuntimeError):
        counts.of(["one"], broken)
    assert counts.of(["one"], count) == [1]


def test_a_model_is_asked_anew_once_its_process_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(FakeModel, "count_tokens", lambda self, texts: asked.append(texts) or [7 for _ in texts])
    model = SupervisedModel(load_catalogue()["packaged"][0], lambda tier: FakeModel(lambda prompt: "yes"))
    assert model.count_tokens(["a", "b"]) == model.count_tokens(["b", "a"]) == [7, 7]
    assert asked == [["a", "b"]]
    model.leave()  # the next request starts another
    model.count_tokens(["c"])
    model.count_tokens(["a"])
    model.close()
    assert asked == [["a", "b"], ["c"], ["a"]]
