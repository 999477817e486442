"""The replica: one tenant's memory in this process, read without Postgres. Knows nothing of encoders or of answers."""

from __future__ import annotations

from ruvllm.memory.replica.options import ReplicaOptions, ReplicaState
from ruvllm.memory.replica.replica import Replica

__all__ = ["Replica", "ReplicaOptions", "ReplicaState"]
