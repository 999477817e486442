"""Opens the model of a tier where it is: in a worker on this machine, or behind vLLM servers. Starts no server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruvllm.inference.tiers import Tier
from ruvllm.inference.vllm_settings import servers
from ruvllm.settings import Settings

if TYPE_CHECKING:
    from ruvllm.inference.pool import WorkerModel


def start(tier: Tier, settings: Settings, threads: int = 0) -> WorkerModel:
    """The tier's model: of the vLLM servers that RUVLLM_VLLM names for it, else in a worker on its verified file.

    Raises:
        SettingsError: RUVLLM_VLLM does not parse.
        ModelFileError: no server is named, and the file is missing, altered or cannot be loaded.
        WorkerDiedError: the worker ended while it started.
    """
    urls = servers(settings).get(tier.name)
    if urls:
        from ruvllm.inference.vllm import VllmModel

        return VllmModel(tier, urls, settings)
    from ruvllm.inference.llama_cpp import LlamaWorker
    from ruvllm.inference.opened import verified

    with verified(tier, settings) as file:
        return LlamaWorker(tier, file.path, settings, threads, file=file)


def is_remote(tier: Tier, settings: Settings) -> bool:
    """Whether vLLM servers answer for the tier, so that it needs no file here."""
    return tier.name in servers(settings)
