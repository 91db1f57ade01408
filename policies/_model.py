"""The module of a policy: a Qwen-VL model of transformers, loaded to be sampled from and trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from agentvision.errors import ModelError, first_line
from agentvision.hub import reachable
from agentvision.lora import add_adapter
from agentvision.recipe.lora import Lora

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    attn: Attention = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    adapter: Lora | None = None,
) -> nn.Module:
    """A vision-language model of a local folder or hub id, in evaluation mode. Raises `ModelError` when it fails.

    With an `adapter` it has a new one, and nothing else of it can be trained.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging as transformers_logging

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = reachable(path, revision=revision)
    if not sys.stderr.isatty():  # a bar is for a person who waits, not for a log
        transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            place,
            dtype=dtype,
            attn_implementation=best_attention(device) if attn == "auto" else attn,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{str(path)!r} cannot be loaded as a model: {first_line(error)}") from error
    if adapter is not None:
        add_adapter(model, adapter)
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"model.device={device!r} cannot be used: {first_line(error)}") from error


def best_attention(device: torch.device | str) -> Attention:
    """flash-attn's kernel where it is installed and there is a GPU, else torch's scaled-dot-product attention."""
    from transformers.utils.import_utils import is_flash_attn_2_available

    return "flash_attention_2" if str(device).startswith("cuda") and is_flash_attn_2_available() else "sdpa"


def dtype_of(name: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point type of torch by its name. Raises `ModelError` for another."""
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ModelError(f"{name!r} is no floating-point type of torch; try 'bfloat16' or 'float32'")
    return dtype
