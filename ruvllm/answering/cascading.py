"""A second answer, by the next tier, where the first was not sure of its words; a setting, off by default.

Whole answers only: what was streamed cannot be taken back, so streams are never asked again. Both answers are paid for
(`cost`), the tokens of a reply are those of the answer that stands. Knows nothing of models or of HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from ruvllm.errors import InferenceError
from ruvllm.inference.types import Generation
from ruvllm.router.cascade import Cascade, escalation
from ruvllm.router.decision import Allowed, Decision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """The answer that stands. `decision` is the second one where a second tier gave it, None where none did."""

    generation: Generation
    decision: Decision | None = None


def surer(
    first: Generation,
    decision: Decision,
    allowed: Allowed,
    cascade: Cascade,
    left_s: float,
    again: Callable[[Decision, float], Generation],
) -> Given:
    """The first answer, or that of `again` (the second decision, seconds left) where the first was not sure.

    `decision` names the tier that answered. The first answer stands where nothing says how sure it was, where it took
    longer than what is left of the request's time, and where the second tier fails.
    """
    if first.certainty is None or left_s <= first.seconds:
        return Given(first)
    further = escalation(decision, first.certainty, allowed, cascade)
    if further is None:
        return Given(first)
    try:
        return Given(again(further, left_s), further)
    except InferenceError as error:
        log.warning("cascade: the first answer stands: %s", error)
        return Given(first)


def answered_by(decision: Decision, tier: int) -> Decision:
    """The decision as it came about: where a tier's process died, the next one answered."""
    return replace(decision, tier=tier)
