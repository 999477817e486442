"""A byte-level BPE trained on the spot, with LFM2's special tokens at their ids; knows nothing of weights or files.

Trained on the repository's LICENSE, so that the same shape always gets the same tokens. What a small corpus cannot fill
of a large vocabulary is made up of words that no text is ever split into: they cost what real ones cost, no more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ruvllm.errors import InputError
from ruvllm.settings import PROJECT_ROOT

# The first ids of LiquidAI/LFM2-350M's tokenizer.json; begin 1, pad 0 and end of turn 7 stand in its config.json too.
SPECIAL = (
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|fim_pre|>",
    "<|fim_mid|>",
    "<|fim_suf|>",
    "<|im_start|>",
    "<|im_end|>",
)
PAD, BEGIN, END = 0, 1, 7
SMALLEST = len(SPECIAL) + 256  # special tokens and one for each byte
LINE_END = "Ċ"  # how byte-level BPE writes a newline

# How text is cut before merging; llama.cpp knows it as the pre-tokeniser "lfm2", which is Llama 3's.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Vocabulary:
    """`tokens[id]` in byte-level BPE's alphabet, `merges` in the order of their rank."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    @property
    def quiet(self) -> list[int]:
        """Ids that a blank model should rarely say: they would end its answer."""
        return [i for i, token in enumerate(self.tokens) if i < len(SPECIAL) or LINE_END in token]

    def as_tokenizer_json(self) -> dict[str, Any]:
        """What `tokenizers` reads as tokenizer.json."""
        made: dict[str, Any] = json.loads(_empty(self).to_str())
        return made


@cache
def train(size: int) -> Vocabulary:
    """A vocabulary of exactly `size` tokens.

    Raises:
        InputError: `size` leaves no room for the bytes.
    """
    if size < SMALLEST:
        raise InputError(f"vocabulary: got {size}, want at least {SMALLEST}: special tokens and one for each byte")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = _cut()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((PROJECT_ROOT / "LICENSE").read_text(encoding="utf-8").splitlines(True), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    return Vocabulary((*tokens, *_fillers(size - len(tokens))), tuple((a, b) for a, b in learned["merges"]))


def _fillers(count: int) -> Sequence[str]:
    return [f"Ġblank{number}" for number in range(count)]


def _cut() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _empty(vocabulary: Vocabulary) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(vocabulary.merges), ignore_merges=True))
    tokenizer.pre_tokenizer = _cut()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    begin = SPECIAL[BEGIN]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, BEGIN)]
    )
    return tokenizer
