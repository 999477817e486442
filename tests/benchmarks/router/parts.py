"""What each part of the router was worth after a week of nights, and why it decided as it did. Trains; runs no model.

    python -m tests.benchmarks.router.parts STATE docs/router-week.md

STATE is the state directory of nights that have been run (`make cycle`, or tests/benchmarks/night/week.py); the last
night's snapshot and the EWC state that it started from are used. The page is what `ruvllm router ablate` and `ruvllm
router explain` print.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ruvllm.settings import PROJECT_ROOT
from tests.benchmarks.memory.report import conditions

_WIDTH = "132"
_PAGE = """# The router after {nights} nights

Made by `python -m tests.benchmarks.router.parts STATE docs/router-week.md` on {date}, revision {revision}; {processor},
{memory}; no figure is typed by hand. The questions, the models and the nights are those of [week.md](week.md).

## What each part is worth

`ruvllm router ablate`: the last night's snapshot, trained without each part and asked for the held-out questions. A
difference is paired question by question, variant minus whole; where its interval holds 0, these questions do not show
that the part is worth anything. A part that this night has no use for is named.

```
{ablation}
```

## Why it decided so

`ruvllm router explain --last 10 --most 5`: the features that moved the promoted router's decision most, in log-odds
against the same question with that feature at its training mean.

```
{explained}
```
"""


def verb(environment: dict[str, str], *arguments: str) -> str:
    """What `ruvllm router` prints."""
    done = subprocess.run(
        [sys.executable, "-c", "from ruvllm.cli import app; app()", "router", *arguments], env=environment,
        cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def text(state: Path) -> str:
    """The page."""
    nights = sorted((state / "cycles").glob("night-*/snapshot.npz"))
    if not nights:
        raise FileNotFoundError(f"{state / 'cycles'}: no night has a snapshot; run `make cycle` or the week first")
    ewc = nights[-1].with_name("ewc.safetensors")
    flags = ["--snapshot", str(nights[-1]), *(["--ewc", str(ewc)] if ewc.is_file() else [])]
    environment = {**os.environ, "RUVLLM_STATE_DIR": str(state), "COLUMNS": _WIDTH, "NO_COLOR": "1"}
    return _PAGE.format(
        nights=len(nights),
        ablation=verb(environment, "ablate", *flags),
        explained=verb(environment, "explain", "--last", "10", "--most", "5"),
        **conditions(),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("state", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    chosen.page.write_text(text(chosen.state.absolute()), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
