"""The parent's end of one model process: one request at a time, watched by a thread. Knows nothing of models.

The thread reads whatever the process sends and ends a process that is silent, hangs, or is far over a deadline. So
every request ends in bounded time, whether its caller reads, waits, or has gone. Messages carry their request's number:
what still comes of a request that was taken back is dropped, and cannot be taken for the next one's answer.
"""

from __future__ import annotations

import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ruvllm.errors import DeadlineError, InferenceError, OverloadedError, RuvllmError, WorkerDiedError
from ruvllm.inference.framing import Channel, FrameError, pack
from ruvllm.inference.limits import MEMORY_EXIT, Growth, out_of_memory_kills
from ruvllm.inference.wire import Wire, error_from_wire

END_S = 3.0  # for a process to leave by itself
_TICK_S = 1.0  # how often the thread looks, at most
# Nothing that a model's process does to itself, and a SIGKILL of ours is known as such. A fault of its own is SIGSEGV,
# SIGABRT and the like, and at its own memory limit it leaves with MEMORY_EXIT before the kernel has to end it.
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_START_PATIENCE = 4  # times the usual silence, while Python and its libraries load from a cold disk


@dataclass(frozen=True)
class Patience:
    """Seconds. `beat`: between signs of life while a request is worked on; `silence`: without any, the process is
    stopped or swapped out and is ended; `hang`: with signs of life but no step of work; `grace`: beyond a deadline or
    after a cancel."""

    beat: float = 1.0
    silence: float = 15.0
    hang: float = 60.0
    grace: float = 5.0

    @property
    def tick(self) -> float:
        return min(_TICK_S, self.silence / 4, self.hang / 4, self.grace / 4)


@dataclass
class Call:
    """One request on its way. Its messages, or the error that ended it, are in `replies`, in order."""

    number: int
    ends: float
    heard: float
    stepped: float
    steps: int = -1
    cancelled: bool = False
    replies: queue.SimpleQueue[Wire | RuvllmError] = field(default_factory=queue.SimpleQueue)

    def next(self) -> Wire:
        """The next message: pieces, then one last.

        Raises:
            WorkerDiedError, DeadlineError: the process was ended.
            RuvllmError: what the process says went wrong.
        """
        reply = self.replies.get()
        if isinstance(reply, RuvllmError):
            raise reply
        if "error" in reply:
            raise error_from_wire(reply)
        return reply


class Connection:
    """`name` and `log` are what messages of errors speak of."""

    def __init__(
        self,
        channel: Channel,
        process: subprocess.Popen[bytes],
        name: str,
        log: object,
        growth: Growth,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.growth = growth
        self.state: Wire = {}  # what the process said of itself last
        self._channel, self._process, self._name, self._log = channel, process, name, log
        self._patience, self._clock = patience or Patience(), clock
        self._slot = threading.Lock()  # taken by a caller, given back by the thread with the last message
        self._state = threading.Lock()
        self._call: Call | None = None
        self._end: InferenceError | None = None
        self._numbers = 0
        self._oom_kills = out_of_memory_kills()
        self._thread = threading.Thread(target=self._listen, name=f"model {name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._end is None and self._process.poll() is None

    @property
    def busy(self) -> bool:
        return self._slot.locked()

    def open(self, request: Mapping[str, object], deadline_s: float) -> Call:
        """Sends a request once the process is free.

        Raises:
            OverloadedError: it was not free within the deadline.
            WorkerDiedError: the process is gone; this request did not reach it.
            FrameError, UnicodeEncodeError: the request is no message.
        """
        pack({**request, "id": 2**63, "deadline_s": deadline_s})  # before it costs a turn
        began = self._clock()
        if not self._slot.acquire(timeout=min(deadline_s, threading.TIMEOUT_MAX)):
            raise OverloadedError(f"model {self._name}: not free within {deadline_s:g} s; ask again later")
        left = max(0.0, deadline_s - (self._clock() - began))
        call = self._begin(left)
        try:
            with suppress(OSError):  # the thread sees the end too, and says why
                self._channel.send({**request, "id": call.number, "deadline_s": left})
        except BaseException:  # half a message may have gone out
            self.kill()
            raise
        return call

    def _begin(self, left: float) -> Call:
        with self._state:
            if self._end is not None:
                self._slot.release()
                gone = WorkerDiedError(str(self._end))
                gone.reached = False
                raise gone from self._end
            self._numbers += 1
            now = self._clock()
            self._call = Call(self._numbers - 1, now + left, now, now)
            return self._call

    def cancel(self, number: int) -> None:
        """Takes a request back; nothing happens if it is over. Any thread may, also while objects are collected."""
        call = self._call
        if call is None or call.number != number or call.cancelled:
            return
        call.cancelled = True
        call.ends = min(call.ends, self._clock())
        with suppress(OSError):
            self._channel.send({"cancel": number})

    # -- the thread

    def _listen(self) -> None:
        try:
            while True:
                self._listen_once()
        except (EOFError, OSError):
            self._over(self._obituary())
        except FrameError as error:
            self.kill()
            self._over(
                WorkerDiedError(f"model {self._name}: its process sent what is no message ({error}); {self._see}")
            )
        except InferenceError as error:
            self._over(error)

    def _listen_once(self) -> None:
        with suppress(TimeoutError):
            self._sort(self._channel.receive(self._patience.tick))
        if not self._channel.waiting:  # this process may itself have been stopped: read first what has come
            self._look()

    def _sort(self, message: Wire) -> None:
        """
        Raises:
            FrameError: no message of a model's process.
        """
        call, number = self._call, message.get("beat", message.get("id"))
        if not isinstance(number, int):
            raise FrameError(f"got a message with {sorted(message)}")
        last = "ok" in message or "error" in message
        if isinstance(rss := message.get("rss"), int):
            self.growth.note(rss, answered=number > 0 and _is_answer(message.get("ok")))
        if isinstance(state := message.get("state"), dict):
            self.state = state
        if call is None or call.number != number:
            return
        call.heard = self._clock()
        if "beat" in message:
            self._note_steps(call, message.get("steps"))
            return
        call.stepped = call.heard
        if last:
            self._close(call, message)
        elif isinstance(message.get("say"), str):
            call.replies.put(message)
        else:
            raise FrameError(f"got a message with {sorted(message)}")

    def _note_steps(self, call: Call, steps: object) -> None:
        if steps != call.steps or call.number == 0:  # loading a file takes no steps
            call.steps, call.stepped = int(steps) if isinstance(steps, int) else -1, call.heard

    def _look(self) -> None:
        """
        Raises:
            WorkerDiedError, DeadlineError: the process was ended, this is why.
        """
        call, now, patience = self._call, self._clock(), self._patience
        if call is None:
            return
        silence = patience.silence * (_START_PATIENCE if call.number == 0 else 1)
        if now > call.ends + patience.grace:
            raise self._killed(DeadlineError, f"no answer {patience.grace:g} s after its deadline")
        if now - call.heard > silence:
            raise self._killed(WorkerDiedError, f"no sign of life for {silence:g} s")
        if now - call.stepped > patience.hang:
            raise self._killed(WorkerDiedError, f"no step of work for {patience.hang:g} s")

    def _killed(self, kind: type[InferenceError], why: str) -> InferenceError:
        self.kill()
        return kind(f"model {self._name}: {why}; its process was ended; {self._see}")

    def _close(self, call: Call, last: Wire | RuvllmError) -> None:
        with self._state:
            self._call = None
        call.replies.put(last)
        self._slot.release()

    def _over(self, why: InferenceError) -> None:
        with self._state:
            closed, call = self._end is not None, self._call
            self._end = self._end or why
        if call is not None:
            last = type(self._end)(str(self._end))
            last.working = not closed  # a process that its owner ends did not die of a request
            last.external = self._end.external
            self._close(call, last)

    def _obituary(self) -> InferenceError:
        self._channel.hang_up()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return WorkerDiedError(f"model {self._name}: its process hung up and was ended; {self._see}")
        gone = WorkerDiedError(f"model {self._name}: its process {self._process.pid} ended ({self._how}); {self._see}")
        gone.external = -self._process.returncode in _FROM_OUTSIDE
        return gone

    @property
    def _how(self) -> str:
        code = self._process.returncode
        limit = f"its limit is {self.growth.limit // 2**20} MiB, RUVLLM_MODEL_MEMORY_MB sets another"
        if code == MEMORY_EXIT:
            return f"it was refused memory; {limit}"
        if code == -signal.SIGABRT:  # also how llama.cpp ends when it is refused memory
            return f"SIGABRT; the log says whether it was refused memory: {limit}"
        if code == -signal.SIGKILL:
            grown = out_of_memory_kills() - self._oom_kills
            why = "the kernel ended it, the machine has no memory left" if grown > 0 else "sent from outside"
            return f"SIGKILL, {why}"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    @property
    def _see(self) -> str:
        return f"the log is {self._log}"

    # -- the end

    def kill(self) -> None:
        self._channel.hang_up()
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the process: it leaves when its socket closes, and is killed if it does not."""
        with self._state:
            self._end = self._end or WorkerDiedError(f"model {self._name}: its process was ended by its owner")
        self._channel.hang_up()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._channel.close()


def _is_answer(ok: object) -> bool:
    """Of a model that worked: counts of tokens are none."""
    return isinstance(ok[0] if isinstance(ok, list) and ok else ok, dict)


def answer_of(call: Call, cancel: Callable[[int], None]) -> Any:
    """Waits for the last message. What interrupts the waiting (Ctrl-C) takes the request back."""
    try:
        while "ok" not in (reply := call.next()):
            continue
    except RuvllmError:
        raise
    except BaseException:
        cancel(call.number)
        raise
    return reply["ok"]
