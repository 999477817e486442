"""Requests and answers as plain maps and back; knows nothing of sockets. One pair of functions per record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from ruvllm.errors import (
    CancelledError,
    DeadlineError,
    InferenceError,
    InputError,
    ModelFileError,
    RuvllmError,
    TooLargeError,
)
from ruvllm.inference.types import Choice, Generation, NestedGeneration, Prompt, Sampling, Segment

T = TypeVar("T")
Wire = dict[str, Any]  # what msgpack made of a record; checked by the record's own constructor
_KINDS = (CancelledError, DeadlineError, InferenceError, InputError, ModelFileError, TooLargeError)
_ERRORS = {kind.__name__: kind for kind in _KINDS}


def segments_to_wire(segments: Sequence[Segment]) -> list[list[object]]:
    return [[segment.text, segment.trusted] for segment in segments]


def segments_from_wire(wire: Sequence[tuple[str, bool]]) -> tuple[Segment, ...]:
    return tuple(Segment(text, trusted) for text, trusted in wire)


_PARTS = ("static", "history", "context", "question")


def prompt_to_wire(prompt: Prompt) -> Wire:
    return {part: segments_to_wire(getattr(prompt, part)) for part in _PARTS}


def prompt_from_wire(wire: Wire) -> Prompt:
    return Prompt(**{part: segments_from_wire(wire[part]) for part in _PARTS})


def sampling_to_wire(sampling: Sampling) -> Wire:
    return asdict(sampling)


def sampling_from_wire(wire: Wire) -> Sampling:
    return Sampling(**{**wire, "stop": tuple(wire["stop"])})


def generation_to_wire(generation: Generation) -> Wire:
    return asdict(generation)


def generation_from_wire(wire: Wire) -> Generation:
    return Generation(**wire)


def nested_to_wire(nested: NestedGeneration) -> Wire:
    return asdict(nested)


def nested_from_wire(wire: Wire) -> NestedGeneration:
    return NestedGeneration(**{**wire, "generation": Generation(**wire["generation"])})


def choice_to_wire(choice: Choice) -> Wire:
    return asdict(choice)


def choice_from_wire(wire: Wire) -> Choice:
    return Choice(**{**wire, "probabilities": tuple(wire["probabilities"])})


def error_to_wire(error: RuvllmError) -> Wire:
    return {"error": type(error).__name__, "message": str(error)}


def error_from_wire(wire: Mapping[str, object]) -> RuvllmError:
    kind = _ERRORS.get(str(wire["error"]), InferenceError)
    return kind(str(wire.get("message", "model's process: it failed and did not say why")))


def shaped(make: Callable[[], T]) -> T:
    """What `make` makes of an answer.

    Raises:
        InferenceError: the answer has not the shape that it should have.
    """
    try:
        return make()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InferenceError(f"model's process: its answer has another shape than wanted: {error!r}") from error
