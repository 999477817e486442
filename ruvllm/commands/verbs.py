"""What every verb of the CLI shares: errors in one line, JSON for scripts. Knows nothing of the verbs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.text import Text

from ruvllm.commands.console import errors
from ruvllm.errors import RuvllmError
from ruvllm.settings import Settings, load_settings

P = ParamSpec("P")
R = TypeVar("R")
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


def plainly(verb: Callable[P, R]) -> Callable[P, R]:
    """One line for an error of ours, instead of a traceback; Ctrl-C ends with 130."""

    @wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(*args, **kwargs)
        except RuvllmError as error:
            errors.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            errors.print("stopped; run the same command again to go on where it was")
            raise typer.Exit(130) from None

    return run


def say(as_json: bool, value: Any, shown: Callable[[], None]) -> None:
    """`value` as JSON, or what `shown` prints."""
    if as_json:
        print(json.dumps(value, default=str))
    else:
        shown()


def settings_here(accept_gemma_terms: bool = False) -> Settings:
    """The environment's settings. Accepted terms stay accepted for this state directory, with the day they were."""
    settings = load_settings()
    accepted = settings.state_dir / "gemma-terms-accepted"
    if accept_gemma_terms and not accepted.is_file():
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        accepted.write_text(f"{datetime.now(UTC).isoformat()}\n")
    if accept_gemma_terms or accepted.is_file():
        os.environ["RUVLLM_ACCEPT_GEMMA_TERMS"] = "true"  # flows and child processes read the environment
    return load_settings()
