"""What a tier reads of what was found: the context within a bin, for answers and for the oracle alike.

The oracle reads the plain way: best first, so that a question's bins extend one another's prompt and cost little more
than the largest. Answers are asked once, so they lose nothing by an order that small models read better, best last
(docs/attention.md); what the oracle says of a wide bin is thus a little low.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ruvllm.attention.context import Assembly, Candidate, Context, assemble
from ruvllm.inference.prompt import sizes
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Model
from ruvllm.memory.records import Hit, Node
from ruvllm.settings import Settings

PLAIN = Assembly()


def assembly(settings: Settings) -> Assembly:
    """How answers' contexts are put together."""
    return Assembly(
        order=settings.context_order, balance=settings.context_balance, sentences=settings.context_sentences
    )


def context_of(tier: Tier, model: Model, nodes: Sequence[Node], question: str, context_bin: int) -> Context:
    """The plain context of `nodes`, best first, in `context_bin` tokens as `tier` shows them."""
    return assemble(_candidates(nodes), question, partial(sizes, tier, model), context_bin, PLAIN)


def context_of_hits(
    tier: Tier, model: Model, hits: Sequence[Hit], question: str, context_bin: int, how: Assembly
) -> Context:
    """The context of an answer, put together as `how` says."""
    vectors = np.stack([hit.embedding for hit in hits]) if hits and how.balance < 1 else None
    nodes = [hit.node for hit in hits]
    return assemble(_candidates(nodes), question, partial(sizes, tier, model), context_bin, how, vectors)


def _candidates(nodes: Sequence[Node]) -> list[Candidate]:
    """Their rank is their score: similarities would undo attention's order."""
    return [Candidate(node.id, node.text, -float(rank), node.source, node.trust) for rank, node in enumerate(nodes)]
