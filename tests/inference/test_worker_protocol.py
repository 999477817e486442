"""What a worker's own end of the socket does with what it is sent, and how it sends pieces."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.inference.framing import Channel, FrameError, pack
from ruvllm.inference.worker import PIECE_S, Gathered, _seconds
from ruvllm.settings import PROJECT_ROOT

_START = {"id": 0, "deadline_s": 60.0, "beat_s": 0.1, "data": 2**40}
_ANY = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x00\x00\x00\x03abc", 2),
        (struct.pack(">I", 2**31), 2),
        (pack({"op": "generate"}), 2),
        (pack({"id": 1, "op": "generate", "deadline_s": -1}), 2),
        (pack({"cancel": [1]}), 2),
        (b"\x00\x00", 0),  # half a length, then the parent is gone
    ],
    ids=["no msgpack", "too long", "no id", "negative time", "no number", "half"],
)
def test_a_broken_message_ends_the_process_at_once(sent: bytes, code: int) -> None:
    with _scripted() as (process, channel, ours):
        channel.send(_START)
        assert channel.receive(60)["ok"] is True
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        assert process.wait(60) == code


def test_a_cancel_of_what_is_over_does_nothing() -> None:
    with _scripted() as (_, channel, _ours):
        channel.send(_START)
        channel.receive(60)
        channel.send({"cancel": 7})  # of nothing that is under way
        channel.send({"id": 1, "op": "count_tokens", "deadline_s": math.inf, "texts": ["a b"]})
        assert channel.receive(60)["ok"] == [2]


@contextlib.contextmanager
def _scripted():  # type: ignore[no-untyped-def]
    ours, theirs = socket.socketpair()
    program = [sys.executable, "-m", "tests.inference.scripted_worker", str(theirs.fileno())]
    with (
        ours,
        subprocess.Popen(program, pass_fds=[theirs.fileno()], cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL) as process,
    ):
        theirs.close()
        yield process, Channel(ours), ours
        process.kill()


@given(st.dictionaries(st.sampled_from(["id", "deadline_s", "op"]), _ANY))
def test_a_request_has_a_number_and_a_time_or_is_none(message: dict[str, object]) -> None:
    with contextlib.suppress(FrameError):
        assert _seconds(message) >= 0


def test_pieces_that_come_fast_are_gathered_and_none_is_lost() -> None:
    now = [0.0]
    sent: list[str] = []
    say = Gathered(sent.append, lambda: now[0])
    for step in (0.0, PIECE_S / 4, PIECE_S / 4, PIECE_S, 0.0):
        now[0] += step
        say(str(len(sent)))
    assert sent == ["0", "111"]  # the first at once, then what came within the time
    say.rest()
    say.rest()
    assert sent == ["0", "111", "2"]
