"""What the pipeline's programs share: how they say how far they are, and how they fail. Knows nothing of learning."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from ruvllm.errors import RuvllmError

_LINE = re.compile(r"\[(\d+)/(\d+)\] (.*)")


def say(done: int, total: int, note: str = "") -> None:
    """One line of progress on standard output; `heard` reads it back."""
    print(f"[{done}/{total}] {note}", flush=True)


def heard(line: str) -> tuple[int, int, str] | None:
    """(done, total, note) of a line that `say` wrote."""
    found = _LINE.fullmatch(line.strip())
    return (int(found[1]), int(found[2]), found[3]) if found else None


def run_command(main: Callable[[], None]) -> None:
    """Run a program's main; an error of ours becomes its message and exit code 1."""
    try:
        main()
    except RuvllmError as error:
        sys.exit(f"error: {error}")


def single_thread() -> None:
    """Torch as the pipeline uses it: sums in one order, so that a repeated run gives the same bytes.

    Not `use_deterministic_algorithms`: the CPU operations used here have one order, and it imports the compiler.
    """
    import torch

    torch.set_num_threads(1)
