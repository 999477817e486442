"""From which nearness on two texts may be one, by encoder, as data: `ruvllm memory calibrate` prints the curves.

Knows nothing of the database. A setting that is set wins over the table; an encoder that is not in it gets the strict
row, under which only equal wordings merge.
"""

from __future__ import annotations

from dataclasses import dataclass

from ruvllm.settings import Settings


@dataclass(frozen=True)
class Thresholds:
    """Cosines of whole texts: for an answer, question and answer together."""

    paraphrase: float  # from here on a rewording with the same names and numbers is the same fact
    topic: float  # from here on a SameTopic edge is drawn


STRICT = Thresholds(paraphrase=1.01, topic=0.80)
BY_ENCODER = {
    "all-minilm-l6-v2-int8": Thresholds(paraphrase=0.92, topic=0.80),
}


def thresholds(encoder: str, settings: Settings) -> Thresholds:
    """What holds for vectors of `encoder`."""
    row = BY_ENCODER.get(encoder, STRICT)
    return Thresholds(settings.paraphrase_cosine or row.paraphrase, settings.topic_cosine or row.topic)
