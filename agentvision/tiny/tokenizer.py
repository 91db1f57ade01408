"""The tiny tokenizer: a byte-level BPE in Qwen2's format with Qwen's control tokens and chat template.

Its vocabulary is the 256 bytes, a few hundred merges learned from the prompts and questions, and one token for each fixed
line of the prompts and each piece of the turn's grammar, so that an episode takes tens of tokens and not hundreds. No merge
joins two capitals or digits: an answer code is always one token a character. Any other text is spelled out in bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
GRAMMAR = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
MERGES = 240
_ANSWER_LIKE = re.compile(r"[A-Z0-9]{2}|[0-9]")


def build_tokenizer(lines: list[str], *, corpus: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Build the tokenizer: each of `lines` becomes one token, and merges are learned from `corpus`.

    Words of the corpus that look like an answer code are left out of the learning. A line is a plain token, not a control
    token: text that holds it is encoded with it wherever it stands.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    empty = Qwen2Tokenizer(vocab={letter: k for k, letter in enumerate(alphabet)}, merges=[])
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    words = (" ".join(w for w in text.split(" ") if not _ANSWER_LIKE.search(w)) for text in corpus)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGES, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    backend.train_from_iterator(words, trainer)
    learned = json.loads(backend.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    tokenizer: Any = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL], special_tokens=True)
    pieces = dict.fromkeys([*GRAMMAR, *lines])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in pieces if text])
    tokenizer.chat_template = files("agentvision.tiny").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer
