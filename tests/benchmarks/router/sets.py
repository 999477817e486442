"""Which public outcome sets are measured, and which models of them are the ladder. Knows nothing of contenders.

Prices that a file does not bring are the ones that their makers or the paper gave, in USD a million tokens.
"""

from __future__ import annotations

from pathlib import Path

from ruvllm.learning.outcomes.files import Choice, read_outcomes
from ruvllm.learning.outcomes.records import OutcomeSet
from ruvllm.learning.outcomes.splits import without_repeats

SETS: dict[str, Choice] = {
    "routellm_gsm8k": Choice(  # prices: RouteLLM (Ong et al. 2024), section on cost
        prices={"mistralai/Mixtral-8x7B-Instruct-v0.1": (0.24, 0.24), "gpt-4-1106-preview": (24.7, 24.7)}
    ),
    "paretobandit_k3": Choice(),
    "paretobandit_k4": Choice(),
    "llmrouter_mix": Choice(
        tiers=("gemma-2-9b-it", "qwen2.5-7b-instruct", "llama-3.1-8b-instruct", "llama-3.1-nemotron-51b-instruct")
    ),
    "zeroeval_gsm8k": Choice(  # list prices of autumn 2024
        tiers=("claude-3-haiku-20240307", "gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06", "claude-3-5-sonnet-20241022"),
        prices={
            "claude-3-haiku-20240307": (0.25, 1.25),
            "gpt-4o-mini-2024-07-18": (0.15, 0.6),
            "gpt-4o-2024-08-06": (2.5, 10.0),
            "claude-3-5-sonnet-20241022": (3.0, 15.0),
        },
    ),
}


def load(data: Path, name: str) -> OutcomeSet:
    """The set without repeated queries and without rows where a tier is missing."""
    folder = data / "router" if (data / "router").is_dir() else data
    outcomes = without_repeats(read_outcomes(folder / f"{name}.jsonl.gz", SETS[name]))
    return outcomes.rows(outcomes.complete)
