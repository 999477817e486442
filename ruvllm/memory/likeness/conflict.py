"""The conflict rule: which of two rows about one thing stays; knows nothing of the database.

Trust first, then confidence, then age. So no quality that a user claims can displace what the system holds.
"""

from __future__ import annotations

from collections.abc import Iterable

from ruvllm.memory.records import Node

TRUST = {"untrusted": 0, "corroborated": 1, "system": 2}


def rank(trust: str, confidence: float) -> tuple[int, float]:
    return TRUST[trust], round(confidence, 4)  # stored as a 4-byte real


def survivor(nodes: Iterable[Node]) -> Node:
    """The one that stays; of equals the oldest."""
    return max(nodes, key=lambda node: (*rank(node.trust, node.confidence), -node.id))


def visible(node: Node, reader: str) -> bool:
    """Untrusted rows are seen by their writer only."""
    return node.trust != "untrusted" or node.writer == reader


def may_absorb(stays: Node, goes: Node) -> bool:
    """Whoever saw what goes must see what stays."""
    return visible(stays, goes.writer)


def raised_trust(trust: str, writer: str, other_trust: str, other_writer: str) -> str:
    """Trust of a row whose content came once more; a second known writer corroborates an untrusted row."""
    if TRUST[other_trust] > TRUST[trust]:
        return other_trust
    second = bool(writer and other_writer) and writer != other_writer
    return "corroborated" if trust == "untrusted" and second else trust
