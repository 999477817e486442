"""Which of several servers is asked; servers are plain objects here, and checks are called by hand."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_stub import StubVllm

from ruvllm.errors import BackendError, DeadlineError, InputError, OverloadedError, UnreachableError
from ruvllm.inference.replicas import FALLS, RISES, Replica, Replicas
from ruvllm.inference.vllm_http import Server


@dataclass
class Machine:
    url: str
    up: bool = True
    asked: int = 0

    def healthy(self, deadline: float) -> bool:
        return self.up

    def answer(self) -> str:
        self.asked += 1
        if not self.up:
            raise UnreachableError(f"{self.url}: no connection")
        return self.url


def pool(*names: str) -> tuple[Replicas[Machine], list[Machine]]:
    machines = [Machine(name) for name in names]
    return Replicas("lfm2-tiny", machines), machines


def fails(error: Exception) -> None:
    raise error


def test_the_least_busy_is_asked_and_equals_take_turns() -> None:
    replicas, _ = pool("a", "b", "c")
    assert sorted(replicas.run(Machine.answer) for _ in range(6)) == ["a", "a", "b", "b", "c", "c"]
    first = next(replicas.candidates())
    with replicas.borrowed(first):
        assert first.server.url not in {replicas.run(Machine.answer) for _ in range(6)}


def test_a_server_that_cannot_be_connected_to_is_passed_over_and_leaves() -> None:
    replicas, (a, b) = pool("a", "b")
    a.up = False
    assert {replicas.run(Machine.answer) for _ in range(10)} == {"b"}
    assert a.asked == FALLS  # then it is left alone
    assert replicas.healthy == 1
    assert b.asked == 10


def test_it_comes_back_after_good_checks_in_a_row_only() -> None:
    replicas, (a, _) = pool("a", "b")
    a.up = False
    for _ in range(FALLS):
        replicas.check()
    assert not replicas.states["a"][0]
    for up in (True, False, True):  # now and then is not enough
        a.up = up
        replicas.check()
        assert not replicas.states["a"][0]
    for _ in range(RISES - 1):
        replicas.check()
    assert replicas.states["a"][0]


@given(st.lists(st.booleans(), max_size=40))
def test_health_changes_only_after_enough_equal_signs(signs: list[bool]) -> None:
    replica = Replica(Machine("a"))
    for place, good in enumerate(signs):
        before = replica.healthy
        replica.note(good)
        if replica.healthy != before:
            needed = RISES if good else FALLS
            assert signs[place + 1 - needed : place + 1] == [good] * needed


def test_nobody_is_one_typed_error_that_names_all() -> None:
    replicas, machines = pool("a", "b")
    for machine in machines:
        machine.up = False
    with pytest.raises(OverloadedError, match=r"none of its 2 servers answers \(a, b\); the last said: "):
        replicas.run(Machine.answer)


def test_what_was_sent_is_not_sent_again() -> None:
    replicas, machines = pool("a", "b")
    calls = []

    def broken(machine: Machine) -> None:
        calls.append(machine.url)
        raise BackendError("the connection broke")

    with pytest.raises(BackendError, match="broke"):
        replicas.run(broken)
    assert len(calls) == 1
    assert all(in_flight == 0 for _, in_flight in replicas.states.values())
    assert len(machines) == 2


@pytest.mark.parametrize("error", [InputError("bad prompt"), DeadlineError("too late"), OverloadedError("busy")])
def test_a_callers_own_trouble_says_nothing_about_a_server(error: Exception) -> None:
    replicas, _ = pool("a")
    for _ in range(2 * FALLS):
        with pytest.raises(type(error)):
            replicas.run(lambda _: fails(error))
    assert replicas.healthy == 1


def test_a_server_that_keeps_answering_nonsense_leaves() -> None:
    replicas, _ = pool("a", "b")
    for _ in range(2 * FALLS):
        with pytest.raises(BackendError):
            replicas.run(lambda _: fails(BackendError("garbage")))
    assert replicas.healthy == 0


def test_counts_stay_right_under_threads() -> None:
    replicas, _ = pool("a", "b", "c")

    def ask() -> None:
        for _ in range(200):
            replicas.run(Machine.answer)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(state == (True, 0) for state in replicas.states.values())


def test_a_real_server_leaves_when_it_ends_and_comes_back_with_it() -> None:
    back = threading.Event()
    with StubVllm() as stub:
        server = Server(stub.url)
        replicas = Replicas("lfm2-tiny", [server])
        replicas.check(5.0)
        assert replicas.healthy == 1
    for _ in range(FALLS):
        replicas.check(5.0)
    assert replicas.healthy == 0
    with StubVllm(port=stub.port):
        watching = Replicas("lfm2-tiny", [server], check_s=0.02)
        for _ in range(FALLS):
            watching._replicas[0].note(False)
        watching.watch()  # by itself, in its thread
        for _ in range(500):
            if watching.healthy:
                back.set()
                break
            threading.Event().wait(0.02)
        watching.close()
    server.close()
    assert back.is_set()


@pytest.mark.parametrize("how", ["500", "hang", "close", "drip"])
def test_a_check_that_goes_wrong_is_a_bad_sign(how: str) -> None:
    with StubVllm(behave={"/health": how}) as stub:
        server = Server(stub.url)
        replicas = Replicas("lfm2-tiny", [server])
        for _ in range(FALLS):
            replicas.check(0.2)
        assert replicas.healthy == 0
        server.close()
