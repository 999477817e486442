"""Names and shapes of the arrays that a router is stored as. Knows nothing of files or of what they compute."""

from __future__ import annotations

from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.layout import N_FEATURES


def router_shapes(hidden: int, reset_gate: bool = False) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays of router.safetensors."""
    gates = ("z", "h", "r") if reset_gate else ("z", "h")
    heads = {"model": N_TIERS, "context": N_BINS, "quality": N_TIERS, "confidence": 1, "temperature": 1, "top_p": 1}
    return {
        "feature_mean": (N_FEATURES,),
        "feature_scale": (N_FEATURES,),
        "zeta": (),
        "nu": (),
        **{f"W_{gate}": (hidden, N_FEATURES) for gate in gates},
        **{f"U_{gate}": (hidden, hidden) for gate in gates},
        **{f"b_{gate}": (hidden,) for gate in gates},
        **{f"{head}.w": (places, hidden) for head, places in heads.items()},
        **{f"{head}.b": (places,) for head, places in heads.items()},
        "wide": (2 * N_TIERS + N_BINS + 1, N_FEATURES),  # model, context, quality, confidence
        "tier_shift": (N_TIERS,),
        "latency_s": (N_TIERS, N_BINS),
        "cost": (N_TIERS, N_BINS),
    }
