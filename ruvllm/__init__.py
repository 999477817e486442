"""RuvLLM: a self-learning LLM system. Heavy parts load where they are used, so this import stays light."""

from ruvllm.errors import RuvllmError
from ruvllm.settings import Settings, load_settings

__all__ = ["RuvllmError", "Settings", "__version__", "load_settings"]
__version__ = "0.1.0"
