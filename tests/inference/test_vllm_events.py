"""Server-sent events, however a network cuts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import BackendError
from ruvllm.inference.sse import MAX_LINE, EventReader

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
