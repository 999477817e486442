"""What each privacy level of a request allows: one table, asked wherever something is kept, sent or logged.

Knows nothing of requests. The levels are those of the router's features (specification 5.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from ruvllm.errors import InputError

INTERNAL = "internal"
MARK = "privacy:"  # in an interaction's `degraded`: the level that forbade a write-back


@dataclass(frozen=True)
class Level:
    """`stores`: the interaction is kept, for learning and feedback. `writes_back`: its answer may become memory.
    `remote`: model servers on other machines may see the text. `keeps_session`: history and the router's state stay
    for the next turn. `logs_text`: the question may be logged, where RUVLLM_LOG_PROMPTS asks for that. `logs_writer`:
    the log names who asked."""

    name: str
    stores: bool
    writes_back: bool
    remote: bool
    keeps_session: bool
    logs_text: bool
    logs_writer: bool

    @property
    def mark(self) -> str:
        """What a stored row says where its answer must not become memory; '' where it may."""
        return "" if self.writes_back else f"{MARK}{self.name}"


#                           stores writes_back remote keeps_session logs_text logs_writer
LEVELS = {
    each.name: each
    for each in (
        Level("public", True, True, True, True, True, True),
        Level(INTERNAL, True, True, True, True, False, True),
        Level("confidential", True, False, False, True, False, False),
        Level("restricted", False, False, False, False, False, False),
    )
}


def level(name: str) -> Level:
    """
    Raises:
        InputError: there is no such level.
    """
    if name not in LEVELS:
        raise InputError(f"privacy level: got {name!r}, want one of {', '.join(LEVELS)}")
    return LEVELS[name]
