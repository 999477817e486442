"""Text to unit vectors: encoder -> projection -> LayerNorm; knows nothing of memory or the router."""

from ruvllm.embedding.adapter import EmbeddingAdapter, Encoder, Projection
from ruvllm.settings import Settings

__all__ = ["EmbeddingAdapter", "Encoder", "Projection", "open_embedder"]


def open_embedder(settings: Settings) -> EmbeddingAdapter:
    """The embedder that `settings.encoder` names; its model is loaded here, its files' hashes are checked.

    Raises:
        ModelFileError: a file is missing or is not the pinned one.
    """
    return EmbeddingAdapter(_ENCODERS[settings.encoder](settings))


def _minilm(settings: Settings) -> Encoder:
    from ruvllm.embedding.minilm import MiniLMEncoder

    return MiniLMEncoder(threads=1)


def _lfm2(settings: Settings) -> Encoder:
    from ruvllm.embedding.lfm2 import open_encoder

    return open_encoder(settings)


_ENCODERS = {"minilm": _minilm, "lfm2": _lfm2}
