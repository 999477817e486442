"""Server-sent events, however a network cuts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import BackendError, InputError
from ruvllm.inference.sse import MAX_LINE, EventReader
from ruvllm.inference.types import Sampling
from ruvllm.inference.vllm_answer import Reading, completion

STREAM = ': ping\n\ndata: {"a": 1}\r\n\r\nevent: x\ndata: ü\ndata: second\n\n\n\nid: 7\n\ndata:[DONE]\n\n'.encode()
EVENTS = ['{"a": 1}', "ü\nsecond", "[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_events_do_not_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    reader, places = EventReader(), sorted({0, *cuts, len(STREAM)})
    found = [e for a, b in pairwise(places) for e in reader.push(STREAM[a:b])]
    assert found == EVENTS
    assert not reader.unfinished


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_the_typed_error(raw: bytes) -> None:
    try:
        EventReader().push(raw)
    except BackendError:
        assert b"data:" in raw


def test_half_an_event_is_known_as_such() -> None:
    reader = EventReader()
    assert reader.push(b'data: {"a"') == []
    assert reader.unfinished
    assert reader.push(b": 1}\n") == []
    assert reader.unfinished
    assert reader.push(b"\n") == ['{"a": 1}']


def test_a_line_without_end_is_refused() -> None:
    reader = EventReader()
    assert reader.push(b"x" * MAX_LINE) == []
    with pytest.raises(BackendError, match="line of more than"):
        reader.push(b"x")


def _event(text: str, sure: list[float | None], finish: str | None = None) -> dict[str, object]:
    logprobs = {"token_logprobs": sure, "tokens": [text]}
    return {"choices": [{"text": text, "finish_reason": finish, "logprobs": logprobs}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2}}  # fmt: skip


def test_how_sure_comes_with_the_tokens_and_is_asked_for_where_it_is_wanted() -> None:
    assert completion("m", [1, 2], Sampling(scored=True), ())["logprobs"] == 0
    assert "logprobs" not in completion("m", [1, 2], Sampling(), ())
    reading = Reading("http://server")
    text = reading.take(_event("Acc", [-0.1])) + reading.take(_event("ra", [-0.3, -0.2], "stop"))
    assert text == "Accra"
    assert reading.generation(text).certainty == pytest.approx(2.718281828 ** (-0.6 / 3))
    silent = Reading("http://server", finish="stop", usage={"prompt_tokens": 3, "completion_tokens": 2})
    assert silent.generation("").certainty is None


@pytest.mark.parametrize("sure", [[0.5], [float("nan")], [None], ["x"]])
def test_log_probabilities_that_are_none_end_in_the_typed_error(sure: list[float | None]) -> None:
    with pytest.raises(BackendError):
        _read(_event("Accra", sure, "stop"))


def _read(event: dict[str, object]) -> None:
    reading = Reading("http://server")
    reading.generation(reading.take(event))


def test_a_copied_answer_is_refused_and_not_made_freely() -> None:
    with pytest.raises(InputError, match="without copying"):
        completion("m", [1, 2], Sampling(copying=True), ())
