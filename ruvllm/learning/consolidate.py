"""`python -m ruvllm.learning.consolidate`: a promoted bundle's EWC state, for the next night. Files in, file out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ruvllm.learning.command import run_command
from ruvllm.learning.ewc import consolidate_bundle
from ruvllm.router.durable import replace_file


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, consolidate, write."""
    parser = argparse.ArgumentParser(prog="python -m ruvllm.learning.consolidate", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="the folder that the trainer wrote")
    parser.add_argument("--snapshot", type=Path, required=True, help="the snapshot that it was trained on")
    parser.add_argument("--previous", type=Path, help="the EWC state so far")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    result = consolidate_bundle(given.bundle, given.snapshot, given.previous)
    replace_file(given.out, result.state)
    print(f"{given.out}: Fisher information of {result.samples} questions, penalty {result.penalty:g}")


if __name__ == "__main__":
    run_command(main)
