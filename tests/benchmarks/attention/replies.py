"""Answers of a packaged model, each kept in a file as soon as it is made: a killed run goes on where it was.

Knows nothing of attention. What is kept is found again by the model's digest, the prompt and the sampling, so ways that
come to the same prompt cost one answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from ruvllm.inference.files import ensure
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.prompt import PROMPT_VERSION, TEMPLATES, build
from ruvllm.inference.tiers import load_catalogue
from ruvllm.inference.types import Prompt, Sampling
from ruvllm.settings import load_settings

PATIENCE_S = 600.0


@dataclass(frozen=True)
class Reply:
    """An answer and what it cost the model's process; seconds of decoding are the clock's and of its CPU's."""

    text: str
    prompt_tokens: int
    tokens: int
    decode_s: float
    cpu_s: float  # of the whole call, prefill too


class Replies:
    """One packaged model (`style` chat or few-shot) on one thread. Close it, or use it as a context manager."""

    def __init__(self, style: str, keep: Path) -> None:
        settings = load_settings(accept_gemma_terms=True)
        self.tier = next(tier for tier in load_catalogue()["packaged"] if tier.style == style)
        self._worker = LlamaWorker(self.tier, ensure(self.tier, settings), settings, threads=1)
        self._process = psutil.Process(self._worker.pid)
        self._path = keep / "replies" / f"{self.tier.name}-{self.tier.sha256[:12]}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._kept = dict(_read(self._path))

    def ask(self, question: str, passages: Sequence[str], sampling: Sampling) -> Reply:
        prompt = build(self.tier, question, passages, [])
        key = _key(prompt, sampling)
        if key not in self._kept:
            self._kept[key] = self._made(prompt, sampling)
            with self._path.open("a", encoding="utf-8") as file:  # a line of its own, also behind a torn one
                file.write("\n" + json.dumps({"key": key, **asdict(self._kept[key])}))
        return self._kept[key]

    def _made(self, prompt: Prompt, sampling: Sampling) -> Reply:
        before = self._cpu_s()
        made = self._worker.generate(prompt, sampling, PATIENCE_S)
        return Reply(
            made.text, made.prompt_tokens, made.completion_tokens, made.decode_s, self._cpu_s() - before
        )  # fmt: skip

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As the layout shows each."""
        template = TEMPLATES[self.tier.style]
        before = template.passage.format(number=1)
        return self._worker.count_tokens([f"{before}{text}{template.passage_end}" for text in texts])

    def __enter__(self) -> Replies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.close()


def _key(prompt: Prompt, sampling: Sampling) -> str:
    return hashlib.sha256(repr((PROMPT_VERSION, asdict(prompt), asdict(sampling))).encode()).hexdigest()[:24]


def _read(path: Path) -> list[tuple[str, Reply]]:
    """A last line that a killed run tore is left out, and made again."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found.append((row.pop("key"), Reply(**row)))
    return found
