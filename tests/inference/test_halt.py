from __future__ import annotations

import threading

import pytest

from ruvllm.errors import CancelledError, DeadlineError
from ruvllm.inference.halt import Halt


def test_it_stops_once_its_deadline_has_passed() -> None:
    now = [1.0]
    halt = Halt(2.0, lambda: now[0])
    assert not halt.passed
    halt.check()
    now[0] = 2.1
    assert halt.passed
    with pytest.raises(DeadlineError, match="deadline passed while the answer was made; ask for less"):
        halt.check("the answer was made")


def test_another_thread_cancels_and_that_is_what_the_caller_hears_of() -> None:
    halt = Halt(-1.0)
    thread = threading.Thread(target=halt.cancel)
    thread.start()
    thread.join()
    assert halt.passed
    assert halt.cancelled
    with pytest.raises(CancelledError, match="cancelled by its caller while"):
        halt.check()


def test_without_a_deadline_nothing_stops_it() -> None:
    assert not Halt().passed
