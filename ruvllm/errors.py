"""Every error that RuvLLM raises on purpose; knows nothing of the rest of the package.

    RuvllmError
    ├── SettingsError          a setting is missing, contradictory or out of range
    ├── InputError             a text or parameter from outside is unacceptable (HTTP 400)
    │   ├── TooLargeError      it is over a stated limit (HTTP 413)
    │   ├── UnknownTierError   no such tier in the active ladder (HTTP 404)
    │   ├── NotFoundError      what is named is not there, or not to be seen by who asks (HTTP 404)
    │   └── QuarantinedError   a model's process died of this prompt, more than once (HTTP 400)
    ├── ArtifactError          a file is missing, truncated, altered or of another layout
    │   ├── ModelFileError     a GGUF or ONNX file
    │   └── BundleError        a router bundle
    ├── AccessError            who asks may not
    │   ├── AuthenticationError  no key, or none that is known (HTTP 401)
    │   ├── ForbiddenError     the key is not for this (HTTP 403)
    │   └── RateLimitedError   the key's own limits are reached (HTTP 429)
    ├── DatabaseError          Postgres cannot be started, reached or used
    │   ├── ContractError      the catalogue is not what searches rely on
    │   ├── EncoderMismatchError  memory holds vectors of another encoder
    │   ├── KeysUnavailable    no key can be checked: they were never read since the start (HTTP 503)
    │   ├── SpoolFullError     what Postgres could not take fits on disk no more
    │   ├── ReplicaUnavailable    the replica cannot answer now; Postgres can
    │   └── ShardPlanError     a search over shards would not be done by the shards
    ├── InferenceError         a model could not answer
    │   ├── WorkerDiedError    its process ended
    │   ├── OverloadedError    no slot was free in time (HTTP 503)
    │   ├── DeadlineError      the answer was not there by the request's deadline (HTTP 504)
    │   ├── CancelledError     the caller took the request back
    │   └── BackendError       a model server answered with an error, or with what is no answer (HTTP 502)
    │       └── UnreachableError  nothing was sent: no connection; another server may be asked
    ├── LearningError          too little or unusable data to learn from
    ├── RegistryError          packaging, gates or promotion refused
    │   └── GateError          a gate failed or was inconclusive
    └── ProcessError           a service of ours did not start, or its port is taken

A message names the thing, what was got, what is wanted and, where there is one, the way out.
"""

from __future__ import annotations

from collections.abc import Mapping


class RuvllmError(Exception):
    """Base of the tree; the CLI prints its message and exits with 1."""


class SettingsError(RuvllmError):
    """A setting is missing, contradictory or out of range."""


class InputError(RuvllmError):
    """A text or parameter from outside is unacceptable."""


class TooLargeError(InputError):
    """Input is over a stated limit."""


class UnknownTierError(InputError):
    """No such tier in the active ladder."""


class NotFoundError(InputError):
    """What is named is not there, or not to be seen by who asks."""


class QuarantinedError(InputError):
    """A model's process died of this prompt more than once; it is refused for a while."""


class ArtifactError(RuvllmError):
    """A file is missing, truncated, altered or of another layout."""


class ModelFileError(ArtifactError):
    """A model file is missing or is not the one that was pinned."""


class BundleError(ArtifactError):
    """A router bundle is missing, altered or does not fit this code."""


class AccessError(RuvllmError):
    """Who asks may not."""


class AuthenticationError(AccessError):
    """No key was sent, or none that is known, valid and in time."""


class ForbiddenError(AccessError):
    """The key is not for this."""


class RateLimitedError(AccessError):
    """The key's own limits are reached. `retry_after_s` in seconds; `headers` are x-ratelimit-* as they stand now."""

    def __init__(self, message: str, retry_after_s: float = 1.0, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = dict(headers or {})


class DatabaseError(RuvllmError):
    """Postgres cannot be started, reached or used."""


class ContractError(DatabaseError):
    """The catalogue is not what searches rely on: they would be slow or leave rows out, and say nothing."""


class EncoderMismatchError(DatabaseError):
    """Memory holds vectors of another encoder than the one in use."""


class KeysUnavailable(DatabaseError):
    """No key can be checked: the database has not been read since the start."""


class SpoolFullError(DatabaseError):
    """What Postgres could not take fits on disk no more."""


class ReplicaUnavailable(DatabaseError):
    """The replica of memory cannot answer now: cold, stale, over its budget or closed. Ask Postgres."""


class ShardPlanError(DatabaseError):
    """A search over shards would fetch whole shards instead of their nearest nodes."""


class InferenceError(RuvllmError):
    """A model could not answer. `working`: its process was lost while it worked on this very request; `reached` is
    False where the request waited and the process was gone before its turn; `external`: something outside ended it."""

    working = False
    reached = True
    external = False


class WorkerDiedError(InferenceError):
    """A model's process ended while it was needed."""


class OverloadedError(InferenceError):
    """No slot of a model was free in time. `retry_after_s`: when one may be, in seconds."""

    retry_after_s = 1.0


class DeadlineError(InferenceError):
    """The answer was not there by the request's deadline."""


class CancelledError(InferenceError):
    """The caller took the request back before its answer was done."""


class BackendError(InferenceError):
    """A model server answered with an error, or with what is no answer."""


class UnreachableError(BackendError):
    """No connection to a model server; nothing was sent, so another one may be asked."""


class LearningError(RuvllmError):
    """Too little or unusable data to learn from."""


class RegistryError(RuvllmError):
    """Packaging, gates or promotion refused."""


class GateError(RegistryError):
    """A gate failed or was inconclusive."""


class ProcessError(RuvllmError):
    """A service of ours did not start, or its port is taken."""
