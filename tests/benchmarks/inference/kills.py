"""SIGKILL of a model's process, again and again, while several clients ask: every request ends, the next process is
ready soon, and this process does not grow.

    python -m tests.benchmarks.inference.kills --kills 200

kills the smallest packaged model's process; `--file` takes another GGUF. Clients count their own requests: each ends in
an answer or in one of our errors, and what is neither is counted apart. A process is killed while it works, once it has
answered something: after two deaths without an answer between them the next start waits a second, by design.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil

from ruvllm.errors import RuvllmError
from ruvllm.inference.files import ensure
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.supervised import SupervisedModel
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.inference.types import Prompt, Sampling, Segment
from ruvllm.settings import Settings, load_settings

CLIENTS = 4
_ASK = Sampling(max_tokens=16, temperature=1.0, lines=True)
_STUCK_S = 300.0  # no answer for so long, or a client that does not end: the run has failed
_MIB = 2**20


@dataclass
class Tally:
    """What came of the requests, and how soon a process was ready again."""

    kills: int = 0
    in_flight: int = 0  # kills while the process worked
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)  # answer, stream, or the name of an error
    untyped: int = 0  # ended in something that is no error of ours
    unended: int = 0  # clients that still waited at the end
    ready_s: list[float] = field(default_factory=list)  # from the kill to a loaded new process
    answer_s: list[float] = field(default_factory=list)  # from the kill to the next whole answer
    rss: list[float] = field(default_factory=list)  # MiB of this process after each kill
    files: tuple[int, int] = (0, 0)  # open at the start and at the end
    left: int = 0  # processes of ours that were not reaped

    @property
    def requests(self) -> int:
        return sum(self.ends.values()) + self.untyped

    @property
    def answered(self) -> int:
        return self.ends["answer"] + self.ends["stream"]

    def ready(self, quantile: float) -> float:
        return float(np.quantile(self.ready_s, quantile)) if self.ready_s else float("nan")

    @property
    def slope(self) -> float:
        """MiB that this process grows in 100 kills, after the first tenth; a straight line through the samples."""
        samples = self.rss[len(self.rss) // 10 :]
        return float(np.polyfit(range(len(samples)), samples, 1)[0]) * 100 if len(samples) > 2 else float("nan")

    @property
    def sound(self) -> bool:
        return not (self.untyped or self.unended or self.left) and self.answered > 0

    def as_text(self) -> str:
        errors = ", ".join(f"{n} {name}" for name, n in sorted(self.ends.items()) if name not in ("answer", "stream"))
        return (
            f"{self.kills} kills in {self.seconds:.0f} s ({self.in_flight} while it worked): {self.requests} requests, "
            f"{self.ends['answer']} answers, {self.ends['stream']} streams read to their end, {errors or 'no error'}, "
            f"{self.untyped} untyped, {self.unended} without an end; ready again after {self.ready(0.5):.2f} s "
            f"(median), {self.ready(0.99):.2f} s (p99), {self.ready(1.0):.2f} s (longest); own memory "
            f"{self.slope:+.2f} MiB per 100 kills; files {self.files[0]} -> {self.files[1]}"
        )


class Torture:
    """A supervised model, its clients, and the one who kills."""

    def __init__(self, tier: Tier, path: Path, settings: Settings, seed: int = 1) -> None:
        self._path, self._settings, self._tier = path, settings, tier
        self.tally = Tally()
        self._model = SupervisedModel(tier, self._start)
        self._random = random.Random(seed)
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._worker: LlamaWorker | None = None
        self._killed_at: float | None = None
        self._answers = 0  # of this process

    def run(self, kills: int) -> Tally:
        """`kills` times: load, kill, recover."""
        began, own = time.monotonic(), psutil.Process()
        files, others = own.num_fds(), _workers(own)
        clients = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(CLIENTS)]
        try:
            for client in clients:
                client.start()
            for _ in range(kills):
                self._kill_once()
                self.tally.rss.append(own.memory_info().rss / _MIB)
                if self.tally.kills % 50 == 0:
                    print(f"{self.tally.kills} of {kills} kills, {self.tally.requests} requests", flush=True)
            self._until_answers()
        finally:
            self._ending.set()
            for client in clients:
                client.join(_STUCK_S)
            self._model.close()
        self.tally.unended = sum(client.is_alive() for client in clients)
        self.tally.files = (files, own.num_fds())
        self.tally.left = len(_workers(own) - others)
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def _start(self, tier: Tier) -> LlamaWorker:
        worker = LlamaWorker(tier, self._path, self._settings, threads=1)
        with self._changed:
            self._worker, self._answers = worker, 0
            if self._killed_at is not None:
                self.tally.ready_s.append(time.monotonic() - self._killed_at)
        return worker

    def _ask(self, client: int) -> None:
        while not self._ending.is_set():
            try:
                kind = self._stream() if client % 2 else self._generate()
                self.tally.ends[kind] += 1
                self._count_answer()
            except RuvllmError as error:
                self.tally.ends[type(error).__name__] += 1
            except Exception as error:
                self.tally.untyped += 1
                print(f"client {client}: {error!r}", file=sys.stderr)

    def _prompt(self) -> Prompt:
        """Never the same twice: a prompt that was worked on in two deaths is refused."""
        question = Segment(f"Story number {next(self._numbers)}: once upon a time", trusted=False)
        return Prompt((), (), (), (question,))

    def _generate(self) -> str:
        self._model.generate(self._prompt(), _ASK, 120.0)
        return "answer"

    def _stream(self) -> str:
        with self._model.stream(self._prompt(), _ASK, 120.0) as stream:
            said = "".join(stream)
            if said != stream.generation.text:
                raise AssertionError(f"pieces {said!r} are not the answer {stream.generation.text!r}")
        return "stream"

    def _count_answer(self) -> None:
        with self._changed:
            self._answers += 1
            if self._answers == 1 and self._killed_at is not None:
                self.tally.answer_s.append(time.monotonic() - self._killed_at)
            self._changed.notify_all()

    def _until_answers(self) -> LlamaWorker:
        with self._changed:
            if not self._changed.wait_for(lambda: self._worker and self._answers, _STUCK_S):
                raise AssertionError(f"no answer for {_STUCK_S:.0f} s after a kill")
            assert self._worker is not None
            return self._worker

    def _kill_once(self) -> None:
        worker = self._until_answers()
        time.sleep(self._random.uniform(0.0, 0.1))
        with self._changed:
            self._worker, self._answers, self._killed_at = None, 0, time.monotonic()
            self.tally.in_flight += worker.busy
            worker.kill()
            self.tally.kills += 1


def _workers(own: psutil.Process) -> set[int]:
    """Models' processes that are this one's children, dead ones that nobody waited for too."""
    return {
        child.pid
        for child in own.children()
        if child.status() == psutil.STATUS_ZOMBIE or "ruvllm.inference.worker" in _command(child)
    }


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def packaged(settings: Settings) -> tuple[Tier, Path]:
    """The smallest packaged model."""
    tier = load_catalogue()["packaged"][0]
    return tier, ensure(tier, settings)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="SIGKILL of a model's process under load.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--file", type=Path, default=None, help="a GGUF (default: the smallest packaged model)")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ruvllm-kills-") as name:
        settings = load_settings(state_dir=Path(name))
        tier, path = packaged(settings)
        if chosen.file is not None:
            tier, path = replace(tier, name=chosen.file.stem), chosen.file
        tally = Torture(tier, path, settings, chosen.seed).run(chosen.kills)
    print(tally.as_text())
    return 0 if tally.sound else 1


if __name__ == "__main__":
    sys.exit(main())
