"""The layout against the specification's own list (FR-003), written out here."""

import pytest

from ruvllm.router.layout import _GROUPS, LAYOUT, _lay_out

SPECIFIED = [
    # name in the specification, size, first place
    ("token_count", 1, 0),
    ("language_id", 8, 1),
    ("domain_encoding", 16, 9),
    ("user_frequency", 1, 25),
    ("query_type", 6, 26),
    ("l2_norm", 1, 32),
    ("principal_components", 8, 33),
    ("entropy", 1, 41),
    ("sparsity", 1, 42),
    ("cluster_assignment", 4, 43),
    ("memory_coverage", 1, 47),  # the design's spare
    ("k_retrieved", 1, 48),
    ("distances", 4, 49),
    ("search_entropy", 1, 53),
    ("graph_depth", 1, 54),
    ("recall_estimate", 1, 55),
    ("neighborhood_density", 16, 56),
    ("semantic_coherence", 24, 72),
    ("latency_budget", 1, 96),
    ("device_class", 4, 97),
    ("privacy_level", 4, 101),
    ("memory_available", 1, 105),
    ("battery_level", 1, 106),
    ("concurrent_requests", 1, 107),
    ("historical_accuracy", 16, 108),
    ("session_turn", 1, 124),  # the design's four spares
    ("queue_depth", 1, 125),
    ("hour_sine", 1, 126),
    ("hour_cosine", 1, 127),
]


def test_layout_is_the_specifications() -> None:
    assert [(place.name, place.size, place.start) for place in LAYOUT.places] == SPECIFIED
    assert LAYOUT.size == 128 == len(LAYOUT.names) == len(set(LAYOUT.names))
    assert LAYOUT["distances"] == slice(49, 53)
    assert (LAYOUT.low < LAYOUT.high).all()


def test_hash_changes_with_what_a_place_means() -> None:
    assert _lay_out(_GROUPS, 128).hash == LAYOUT.hash
    first, *others = _GROUPS[96]
    changed = type(first)(first.name, first.size, first.low, first.high, "milliseconds")
    assert _lay_out({**_GROUPS, 96: (changed, *others)}, 128).hash != LAYOUT.hash


def test_a_table_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="starts at 31, want 32"):
        _lay_out({**_GROUPS, 0: _GROUPS[0][1:]}, 128)
