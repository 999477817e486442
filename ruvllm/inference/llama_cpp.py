"""A model behind a process of its own, as its parent sees it; knows nothing of routing or of how files are found.

One process per GGUF: llama.cpp's C++ exceptions cannot cross ctypes and end the process they are in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruvllm.errors import InputError, TooLargeError
from ruvllm.inference import waiting
from ruvllm.inference.child import spawn
from ruvllm.inference.connection import Call, Connection, Patience, answer_of
from ruvllm.inference.framing import Channel, FrameError
from ruvllm.inference.limits import Growth, memory_limit
from ruvllm.inference.opened import ModelFile, opened
from ruvllm.inference.prompt import PROMPT_VERSION
from ruvllm.inference.sampling import check_sampling
from ruvllm.inference.snapshots import Counts
from ruvllm.inference.stream import WorkerStream
from ruvllm.inference.threads import Threads
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Choice, Generation, NestedGeneration, Prompt, Sampling
from ruvllm.inference.wire import (
    choice_from_wire,
    generation_from_wire,
    nested_from_wire,
    prompt_to_wire,
    sampling_to_wire,
    shaped,
)
from ruvllm.settings import Settings

START_S = 180.0  # loading a file of several GB from a cold disk, and measuring threads
PROGRAM = ("-m", "ruvllm.inference.worker")
_MIB = 2**20


@dataclass(frozen=True)
class Health:
    """Of one process. Sizes in bytes; `snapshots` counts its kept prompt states."""

    pid: int
    alive: bool
    busy: bool
    resident: int
    limit: int
    worn: str
    wait_policy: str
    threads: Threads
    snapshots: Counts


class LlamaWorker:
    """A `Model` in a child process. Threads may share it: one is answered at a time, the others wait in turn.

    `threads` 0 measures at start and goes on watching. Close it, or use it as a context manager; it also ends when this
    process does. `program` is what Python runs in the child; tests give one that misbehaves.

    Raises:
        ModelFileError: llama.cpp cannot load the file.
        WorkerDiedError: the process ended while it started.
    """

    def __init__(
        self,
        tier: Tier,
        path: Path,
        settings: Settings,
        threads: int = 0,
        patience: Patience | None = None,
        program: Sequence[str] = PROGRAM,
        file: ModelFile | None = None,
    ) -> None:
        self.tier = tier
        self.n_ctx = min(settings.n_ctx, tier.n_ctx)
        self.log_path = settings.run_dir / f"model-{tier.name}.log"
        self.wait_policy = waiting.policy(settings.wait_policy)
        self._wait_s = settings.deadline_s
        patience = patience or Patience()
        growth = Growth(memory_limit(tier, settings), settings.recycle_growth, settings.snapshots_mb * _MIB)
        with nullcontext(file) if file else opened(path) as model:
            sock, self._process = spawn(program, self.log_path, self.wait_policy, [model.number])
            self._connection = Connection(Channel(sock), self._process, tier.name, self.log_path, growth, patience)
            self._start(
                {
                    "path": str(path),
                    "file": model.number,
                    "mark": list(model.mark),
                    "identity": model.identity,
                    "template": PROMPT_VERSION,
                    "n_ctx": self.n_ctx,
                    "threads": threads,
                    "stop": list(tier.stop),
                    "snapshots": settings.snapshots_mb * _MIB,
                    "data": growth.limit,
                    "beat_s": patience.beat,
                }
            )

    def _start(self, what: Mapping[str, object]) -> None:
        try:
            self._ask(what, START_S)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._connection.alive

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._connection.busy

    @property
    def ready(self) -> bool:
        """Loaded, and its process is there."""
        return self.alive

    @property
    def threads(self) -> Threads:
        """In use now; with `threads` 0 they follow the machine."""
        return Threads(**self._connection.state["threads"])

    @property
    def health(self) -> Health:
        """Asks nobody: what the process said when it last spoke."""
        growth = self._connection.growth
        return Health(
            self.pid, self.alive, self.busy, growth.resident, growth.limit, growth.worn,
            self.wait_policy, self.threads, self.snapshots,
        )  # fmt: skip

    @property
    def snapshots(self) -> Counts:
        """Of kept prompt states, as the process last said."""
        return Counts(**self._connection.state.get("snapshots", {}))

    @property
    def resident(self) -> int:
        """Bytes that the process held when it last spoke, mapped weights included."""
        return self._connection.growth.resident

    @property
    def worn(self) -> str:
        """Why the process should be replaced between two requests; empty: it should not."""
        return self._connection.growth.worn

    def count_tokens(self, texts: list[str]) -> list[int]:
        counts = self._ask({"op": "count_tokens", "texts": texts}, self._wait_s)
        return shaped(lambda: [int(count) for count in counts])

    def generate(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Generation:
        reply = self._ask(_generate(prompt, sampling), deadline_s)
        return shaped(lambda: generation_from_wire(reply))

    def stream(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> WorkerStream:
        """The work begins now, not with the first piece that is read."""
        return WorkerStream(
            self._open(_generate(prompt, sampling) | {"stream": True}, deadline_s), self._connection.cancel
        )

    def generate_nested(
        self, prompts: dict[int, Prompt], sampling: Sampling, deadline_s: float
    ) -> list[NestedGeneration]:
        pairs = [[context_bin, prompt_to_wire(prompt)] for context_bin, prompt in prompts.items()]
        answers = self._ask({"op": "generate_nested", "prompts": pairs} | _how(sampling), deadline_s)
        return shaped(lambda: [nested_from_wire(answer) for answer in answers])

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], deadline_s: float) -> list[Choice]:
        request = {"op": "choose", "prompts": [prompt_to_wire(p) for p in prompts], "choices": list(choices)}
        answers = self._ask(request, deadline_s)
        return shaped(lambda: [choice_from_wire(answer) for answer in answers])

    def _ask(self, request: Mapping[str, object], deadline_s: float) -> Any:
        return answer_of(self._open(request, deadline_s), self._connection.cancel)

    def _open(self, request: Mapping[str, object], deadline_s: float) -> Call:
        if not deadline_s >= 0:
            raise InputError(f"deadline: got {deadline_s} s, want a number of seconds from 0")
        try:
            return self._connection.open(request, deadline_s)
        except FrameError as error:
            raise TooLargeError(f"model {self.tier.name}: {error}") from error
        except UnicodeEncodeError as error:
            raise InputError(f"prompt: got a lone surrogate at {error.start}, want text that UTF-8 can hold") from error

    def close(self) -> None:
        """Ends the process. A request that is being answered ends with WorkerDiedError."""
        self._connection.close()

    def kill(self) -> None:
        """SIGKILL, as an operator or the kernel may send it; whoever waits for an answer gets WorkerDiedError."""
        self._process.kill()

    def __enter__(self) -> LlamaWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _generate(prompt: Prompt, sampling: Sampling) -> dict[str, object]:
    return {"op": "generate", "prompt": prompt_to_wire(prompt)} | _how(sampling)


def _how(sampling: Sampling) -> dict[str, object]:
    return {"sampling": sampling_to_wire(check_sampling(sampling))}
