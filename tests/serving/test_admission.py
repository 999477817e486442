"""Who is let in: places, queue, tokens and each key's own limits, on a clock that the test turns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import DeadlineError, OverloadedError, RateLimitedError
from ruvllm.serving.admission import Admission, AdmissionState, Bounds, CallerLimits, Ticket
from ruvllm.serving.buckets import Bucket

FREE = CallerLimits(concurrency=None)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admission(clock: Clock, slots: int = 2, queue: int = 2, queue_tokens: int = 100) -> Admission:
    return Admission(Bounds(slots, queue, queue_tokens), clock)


def running(door: Admission, count: int, key: str = "k") -> list[Ticket]:
    tickets = [door.enter(key, FREE) for _ in range(count)]
    for ticket in tickets:
        ticket.begin()
    return tickets


def test_places_are_slots_and_queue_and_come_back(clock: Clock) -> None:
    door = admission(clock)
    inside = running(door, 2) + [door.enter("k", FREE) for _ in range(2)]
    assert door.state == AdmissionState(2, 2, 0, False)
    with pytest.raises(OverloadedError, match="all 4 places") as refused:
        door.enter("other", FREE)
    assert refused.value.retry_after_s >= 1
    inside[3].leave()
    inside[3].leave()  # to leave twice is to leave once
    door.enter("other", FREE)
    with pytest.raises(OverloadedError):
        door.enter("other", FREE)


def test_a_block_leaves_whatever_happens(clock: Clock) -> None:
    door = admission(clock)
    with pytest.raises(ZeroDivisionError), door.enter("k", FREE, tokens=7) as ticket:
        print(ticket.begin(), 1 / 0)
    assert door.state == AdmissionState(0, 0, 0, False)


def test_tokens_bound_the_queue_but_not_an_idle_gateway(clock: Clock) -> None:
    door = admission(clock, slots=1, queue=5)
    door.enter("k", FREE, tokens=500).begin()  # nobody waits behind anybody: it is taken, however long
    door.enter("k", FREE, tokens=60)
    with pytest.raises(OverloadedError, match="60 prompt tokens wait and this request has 41"):
        door.enter("k", FREE, tokens=41)
    late = door.enter("k", FREE, tokens=40)
    assert door.state.queued_tokens == 100
    late.begin()
    assert door.state.queued_tokens == 60


def test_one_key_cannot_take_every_place(clock: Clock) -> None:
    door = admission(clock, slots=8)
    mine = [door.enter("mine", CallerLimits(concurrency=3)) for _ in range(3)]
    with pytest.raises(RateLimitedError, match="3 requests under way, want at most 3"):
        door.enter("mine", CallerLimits(concurrency=3))
    door.enter("yours", CallerLimits(concurrency=3))
    mine[0].leave()
    door.enter("mine", CallerLimits(concurrency=3))


def test_requests_a_minute_come_back_evenly_and_are_told(clock: Clock) -> None:
    door, limits = admission(clock), CallerLimits(None, requests_per_minute=60)
    for _ in range(60):
        with door.enter("k", limits) as ticket:
            pass
    assert ticket.headers()["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(RateLimitedError) as refused:
        door.enter("k", limits)
    assert refused.value.headers["x-ratelimit-limit-requests"] == "60"
    assert refused.value.headers["x-ratelimit-reset-requests"] == "60.000s"
    assert refused.value.retry_after_s == 1.0
    clock.now += refused.value.retry_after_s
    door.enter("k", limits).leave()
    with pytest.raises(RateLimitedError):
        door.enter("k", limits)


def test_tokens_a_minute_count_the_prompts(clock: Clock) -> None:
    door, limits = admission(clock), CallerLimits(None, tokens_per_minute=600)
    with door.enter("k", limits, tokens=500) as ticket:
        assert ticket.headers()["x-ratelimit-remaining-tokens"] == "100"
    with pytest.raises(RateLimitedError) as refused:
        door.enter("k", limits, tokens=200)
    assert refused.value.retry_after_s == 10.0  # the 100 that lack, at 10 a second


def test_who_is_over_a_limit_of_their_own_hears_of_it_even_when_all_is_full(clock: Clock) -> None:
    door = admission(clock, slots=1, queue=0)
    running(door, 1, "k")
    with pytest.raises(RateLimitedError):
        door.enter("k", CallerLimits(concurrency=1))
    with pytest.raises(OverloadedError):
        door.enter("j", CallerLimits(concurrency=1))


def test_a_refused_request_costs_its_key_nothing(clock: Clock) -> None:
    door, limits = admission(clock, slots=1, queue=0), CallerLimits(None, requests_per_minute=60)
    [other] = running(door, 1)
    for _ in range(100):
        with pytest.raises(OverloadedError):
            door.enter("k", limits)
    other.leave()
    assert door.enter("k", limits).headers()["x-ratelimit-remaining-requests"] == "59"


def test_who_waited_past_the_deadline_is_not_begun(clock: Clock) -> None:
    door = admission(clock)
    ticket = door.enter("k", FREE, deadline_s=5)
    clock.now += 4
    assert ticket.remaining_s() == pytest.approx(1)
    clock.now += 2
    assert ticket.remaining_s() == 0
    with pytest.raises(DeadlineError, match=r"1\.0 s past"):
        ticket.begin()
    ticket.leave()
    assert door.state == AdmissionState(0, 0, 0, False)


def test_a_wait_that_outlasts_the_deadline_is_refused_at_once(clock: Clock) -> None:
    door = admission(clock, slots=1, queue=50)
    for _ in range(40):  # answers take ten seconds here
        with door.enter("k", FREE) as ticket:
            ticket.begin()
            clock.now += 10
    running(door, 1)
    door.enter("k", FREE, deadline_s=60)
    with pytest.raises(OverloadedError, match="the wait would be 20 s, the request's deadline is 15 s") as refused:
        door.enter("k", FREE, deadline_s=15)
    assert refused.value.retry_after_s == pytest.approx(20, abs=0.1)


def test_closing_lets_those_inside_finish(clock: Clock) -> None:
    door = admission(clock)
    [ticket] = running(door, 1)
    door.close()
    with pytest.raises(OverloadedError, match="shutting down"):
        door.enter("k", FREE)
    assert not door.drained(0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(door.drained, 30)
        ticket.leave()
        assert waiting.result(30)


def test_threads_never_overfill(clock: Clock) -> None:
    door = admission(clock, slots=4, queue=4)

    def try_in(_: int) -> Ticket | None:
        try:
            return door.enter("k", FREE)
        except OverloadedError:
            return None

    with ThreadPoolExecutor(16) as pool:
        got = [ticket for ticket in pool.map(try_in, range(500)) if ticket]
    assert len(got) == 8
    for ticket in got:
        ticket.leave()
    assert door.state == AdmissionState(0, 0, 0, False)


@given(st.lists(st.tuples(st.sampled_from("ebl"), st.integers(0, 7), st.integers(0, 60)), max_size=60))
def test_counts_agree_with_the_tickets_whatever_comes(steps: list[tuple[str, int, int]]) -> None:
    """Any order of entering, beginning and leaving: what is counted is what is held."""
    clock, held = Clock(), list[Ticket]()
    door = admission(clock, slots=2, queue=3)
    for step, which, amount in steps:
        clock.now += 0.1
        try:
            if step == "e":
                held.append(door.enter(f"k{which % 2}", CallerLimits(4, 1000, 10_000), tokens=amount))
            elif held and step == "l":
                held.pop(which % len(held)).leave()
            elif held:
                held[which % len(held)].begin()
        except (OverloadedError, RateLimitedError):
            continue
        queued = [ticket for ticket in held if ticket.stage == "queued"]
        assert door.state == AdmissionState(
            len(held) - len(queued), len(queued), sum(ticket.tokens for ticket in queued), False
        )
        assert len(held) <= 5
    for ticket in held:
        ticket.leave()
    assert door.state == AdmissionState(0, 0, 0, False)


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=80))
def test_no_stretch_of_time_gives_more_than_a_bucket_and_what_fills_it(
    per_minute: int, asked: list[tuple[float, int]]
) -> None:
    bucket = Bucket.full(per_minute, 0.0)
    assert bucket is not None
    now = taken = 0.0
    for pause, amount in asked:
        now += pause
        if amount <= per_minute and bucket.wait_s(amount, now) == 0:
            bucket.take(amount, now)
            taken += amount
    assert taken <= per_minute * (1 + now / 60) + 1e-6
