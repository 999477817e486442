"""Processes that stop, hang, die, grow or are left in the middle of an answer: the caller gets one typed error, the
next request a process that works. The workers are real processes with a script instead of a model.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from inference_prompts import short_prompt

from ruvllm.errors import (
    CancelledError,
    DeadlineError,
    InferenceError,
    QuarantinedError,
    RuvllmError,
    WorkerDiedError,
)
from ruvllm.inference.connection import Patience
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.supervised import SupervisedModel
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Sampling
from ruvllm.settings import Settings
from tests.benchmarks.inference.kills import Torture

SCRIPT = ("-m", "tests.inference.scripted_worker")
LONG = 60.0  # seconds: nothing here takes as long
Start = Callable[..., LlamaWorker]


@pytest.fixture
def start(tiers: dict[str, Tier], settings: Settings) -> Iterator[Start]:
    workers: list[LlamaWorker] = []

    def started(patience: Patience | None = None, **changes: object) -> LlamaWorker:
        own = replace(settings, **changes)  # type: ignore[arg-type]
        workers.append(LlamaWorker(tiers["chat"], Path(os.devnull), own, 1, patience, SCRIPT))
        return workers[-1]

    yield started
    for worker in workers:
        worker.close()


def say(worker: LlamaWorker | SupervisedModel, text: str, deadline_s: float = LONG) -> str:
    return worker.generate(short_prompt(text), Sampling(), deadline_s).text


# --- streams ----------------------------------------------------------------------------------------------------------


def test_pieces_come_while_the_answer_is_made_and_are_its_text(start: Start) -> None:
    stream = start().stream(short_prompt("say 3"), Sampling(), LONG)
    pieces = iter(stream)
    assert next(pieces) == "0 "
    with pytest.raises(InferenceError, match="read all its pieces first"):
        _ = stream.generation
    assert "".join(pieces) == "1 2 "
    assert stream.generation.text == "0 1 2 "


def test_a_closed_stream_stops_the_work_and_frees_the_process(start: Start) -> None:
    worker = start()
    with worker.stream(short_prompt("tick"), Sampling(), LONG) as stream:
        assert next(iter(stream)) == "0 "
    assert not worker.busy
    assert list(stream) == []
    assert say(worker, "say 1") == "say 1"


def test_a_stream_that_is_lost_unread_does_not_reach_the_next_request(start: Start) -> None:
    worker = start()
    pieces = iter(worker.stream(short_prompt("tick"), Sampling(), LONG))
    next(pieces)
    del pieces
    gc.collect()
    assert "".join(worker.stream(short_prompt("say 2"), Sampling(), LONG)) == "0 1 "
    assert worker.count_tokens(["a b c"]) == [3]


def test_an_exception_in_the_reader_s_loop_frees_the_process(start: Start) -> None:
    worker = start()
    with pytest.raises(ZeroDivisionError):
        _divide_by_zero(worker)
    assert say(worker, "say 1") == "say 1"


def _divide_by_zero(worker: LlamaWorker) -> None:
    with worker.stream(short_prompt("tick"), Sampling(), LONG) as stream:
        for number in stream:
            print(1 / int(number))


def test_a_stream_over_its_deadline_ends_with_an_error_and_its_process_lives(start: Start) -> None:
    worker = start()
    with pytest.raises(DeadlineError, match="deadline passed while ticking"):
        list(worker.stream(short_prompt("tick"), Sampling(), 0.1))
    assert say(worker, "say 1") == "say 1"


def test_a_cancelled_request_says_so_to_whoever_still_reads(start: Start) -> None:
    worker = start()
    stream = worker.stream(short_prompt("tick"), Sampling(), LONG)
    next(iter(stream))
    worker._connection.cancel(stream._call.number)
    with pytest.raises(CancelledError):
        list(stream)


# --- processes that do not answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("stop", WorkerDiedError, "no sign of life for 2 s"),
        ("hang", WorkerDiedError, "no step of work for 3 s"),
        ("die", WorkerDiedError, r"ended \(SIGSEGV\); the log is"),
        ("killed", WorkerDiedError, r"ended \(SIGKILL, .*\); the log is"),
    ],
)
def test_a_process_that_is_lost_is_found_ended_and_named(
    start: Start, what: str, error: type[RuvllmError], words: str
) -> None:
    worker = start(Patience(beat=0.1, silence=2.0, hang=3.0))
    with pytest.raises(error, match=words) as caught:
        say(worker, what)
    assert caught.value.working  # type: ignore[attr-defined]
    assert caught.value.external == (what == "killed")  # type: ignore[attr-defined]
    assert not worker.alive
    assert not psutil.pid_exists(worker.pid)
    with pytest.raises(WorkerDiedError) as later:
        say(worker, "say 1")
    assert not later.value.working


def test_a_process_that_ignores_its_deadline_is_ended(start: Start) -> None:
    worker = start(Patience(beat=0.1, grace=0.5))
    with pytest.raises(DeadlineError, match=r"no answer 0\.5 s after its deadline"):
        say(worker, "hang", 0.1)
    assert not worker.alive


def test_a_process_stopped_in_mid_stream_ends_the_stream(start: Start) -> None:
    worker = start(Patience(beat=0.1, silence=2.0))
    pieces = iter(worker.stream(short_prompt("tick"), Sampling(), LONG))
    next(pieces)
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerDiedError, match="no sign of life"):
        list(pieces)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_process_at_its_memory_limit_ends_with_one_error_in_mid_stream(start: Start) -> None:
    worker = start(model_memory_mb=500)
    pieces = iter(worker.stream(short_prompt("grow"), Sampling(), LONG))
    assert next(pieces) == "0 "
    with pytest.raises(WorkerDiedError, match="refused memory; its limit is 500 MiB"):
        list(pieces)
    assert not worker.alive


def test_a_process_that_has_grown_is_replaced_between_two_requests(start: Start, tiers: dict[str, Tier]) -> None:
    model = SupervisedModel(tiers["chat"], lambda tier: start(snapshots_mb=0, recycle_growth=1.5))
    assert say(model, "say 1") == "say 1"
    first = model._worker
    assert say(model, "say 2") == "say 2"
    assert model._worker is first
    assert say(model, "leak 300") == "leak 300"
    assert "grew from" in model.state.detail
    assert say(model, "say 3") == "say 3"
    assert model._worker is not first
    assert (model.state.recycled, model.state.restarts) == (1, 0)
    model.close()


def test_a_stream_in_a_worn_process_is_finished_before_it_is_replaced(start: Start, tiers: dict[str, Tier]) -> None:
    model = SupervisedModel(tiers["chat"], lambda tier: start(snapshots_mb=0, recycle_growth=1.5))
    say(model, "say 1")
    say(model, "leak 300")
    model._using = 1  # somebody still reads an answer of this process
    old = model._worker
    assert say(model, "say 1", 0.3) == "say 1"  # at its deadline a request takes the worn process rather than none
    assert model._worker is old
    model._using = 0
    assert say(model, "say 1") == "say 1"
    assert model._worker is not old
    model.close()


# --- what a supervisor makes of it ------------------------------------------------------------------------------------


def test_a_prompt_that_killed_twice_is_refused_and_others_are_not(start: Start, tiers: dict[str, Tier]) -> None:
    made: list[int] = []

    def count(tier: Tier) -> LlamaWorker:
        made.append(1)
        return start()

    clock = Clock()
    model = SupervisedModel(tiers["chat"], count, clock)
    with pytest.raises(WorkerDiedError, match="SIGSEGV"):
        say(model, "die")
    clock.now = 10.0
    with pytest.raises(QuarantinedError, match="died of it 2 times; it is refused for another 590 s"):
        say(model, "die")
    assert len(made) == 2
    assert say(model, "say 1") == "say 1"
    clock.now = 700.0
    with pytest.raises(QuarantinedError, match="3 times"):  # lifted for one more try, which was one too many
        say(model, "die")
    assert len(made) == 3
    model.close()


def test_a_prompt_is_not_blamed_for_what_ended_its_process_from_outside(start: Start, tiers: dict[str, Tier]) -> None:
    """An operator's SIGKILL, or the kernel's for want of memory: the same question is let in as often as asked."""
    clock = Clock()
    model = SupervisedModel(tiers["chat"], lambda tier: start(), clock)
    for _ in range(2):
        clock.now += 1000.0  # past the wait for the next start
        with pytest.raises(WorkerDiedError, match=r"SIGKILL|next start in 2 s"):
            say(model, "killed")
    assert (model.state.quarantined, model.state.restarts) == (0, 3)
    model.close()


def test_another_thread_takes_a_stream_back_and_its_reader_hears_of_it(start: Start, tiers: dict[str, Tier]) -> None:
    model = SupervisedModel(tiers["chat"], lambda tier: start())
    stream = model.stream(short_prompt("tick"), Sampling(), LONG)
    pieces = iter(stream)
    next(pieces)
    other = threading.Thread(target=lambda: [stream.cancel() for _ in range(3)])
    other.start()
    with pytest.raises(CancelledError):
        list(pieces)
    other.join()
    assert model.busy == 0
    assert say(model, "say 1") == "say 1"
    stream.cancel()  # of what is over
    assert say(model, "say 1") == "say 1"
    model.close()


def test_a_cancelled_stream_is_not_tried_again_when_its_process_dies(start: Start, tiers: dict[str, Tier]) -> None:
    made: list[LlamaWorker] = []

    def count(tier: Tier) -> LlamaWorker:
        made.append(start())
        return made[-1]

    model = SupervisedModel(tiers["chat"], count)
    stream = model.stream(short_prompt("hang"), Sampling(), LONG)
    stream.cancel()
    os.kill(made[0].pid, signal.SIGKILL)
    with pytest.raises(CancelledError, match="its model's process was lost meanwhile"):
        list(stream)
    assert (len(made), model.busy) == (1, 0)
    model.close()


def test_a_stream_is_tried_again_only_while_nothing_was_said(start: Start, tiers: dict[str, Tier]) -> None:
    model = SupervisedModel(tiers["chat"], lambda tier: start())
    stream = model.stream(short_prompt("tick"), Sampling(), LONG)
    pieces = iter(stream)
    assert next(pieces) == "0 "
    os.kill(model._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
    with pytest.raises(WorkerDiedError):
        list(pieces)
    assert model.busy == 0

    assert say(model, "say 1") == "say 1"
    worker = model._worker
    os.kill(worker.pid, signal.SIGSTOP)  # type: ignore[union-attr]
    stream = model.stream(short_prompt("say 3"), Sampling(), LONG)
    os.kill(worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
    assert "".join(stream) == "0 1 2 "
    assert stream.generation.text == "0 1 2 "
    assert (model.busy, model.state.restarts) == (0, 2)
    model.close()


def test_a_lost_stream_leaves_its_model_idle(start: Start, tiers: dict[str, Tier]) -> None:
    model = SupervisedModel(tiers["chat"], lambda tier: start())
    pieces = iter(model.stream(short_prompt("tick"), Sampling(), LONG))
    next(pieces)
    assert model.busy == 1
    del pieces
    gc.collect()
    assert model.busy == 0
    assert say(model, "say 1") == "say 1"
    model.close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# --- a model of LFM2's architecture, killed again and again -----------------------------------------------------------


def test_ten_kills_under_load_leave_no_request_without_an_end(
    tiers: dict[str, Tier], tiny_lfm2: Path, settings: Settings
) -> None:
    tally = Torture(replace(tiers["chat"], name="tiny"), tiny_lfm2, replace(settings, wait_policy="passive")).run(10)
    assert tally.sound, tally.as_text()
    assert (tally.kills, len(tally.ready_s)) == (10, 10)
    assert tally.ends["stream"] > 0
    assert tally.ends["answer"] > 0
