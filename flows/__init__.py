"""Prefect flows: one a file, no logic of their own. The work of each step is in `ruvllm/nightly/night.py`."""
