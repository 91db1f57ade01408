"""The model as a plain Hugging Face folder: weights, configuration, tokenizer, processor.

What other programs load (transformers, vLLM, `agentvision eval --model`). The small files of a model that came from a
folder are copied as they stand, so that nothing the tokenizer or processor says is lost in a round trip. Of a model with an
adapter the weights are merged ones, and the adapter stands beside them in `adapter/`, in peft's layout.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from agentvision.errors import AgentVisionError, RunError, TrainingStopped
from agentvision.lora import is_adapted, plain_parameters, save_adapter
from agentvision.tokens import Codec
from agentvision.train.checkpoint import replace_folder

ADAPTER = "adapter"
"""The adapter's folder, within the model's."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json", ".gguf", ".msgpack", ".h5")
_OWN = ("config.json", "generation_config.json")
"""Written from the model itself."""


def save_model(model: Any, codec: Codec, folder: Path, *, source: str) -> None:
    """Write `folder`. `source` is the folder or hub id that the model was loaded from.

    Raises:
        TrainingStopped: a weight is not finite; nothing is written.
    """
    refuse_broken(model)
    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    if is_adapted(model):
        # The merged ones are made beside the model's own: not on its device, where there is room for those alone.
        model.save_pretrained(folder, state_dict={name: weight.cpu() for name, weight in plain_parameters(model)})
        save_adapter(model, folder / ADAPTER, source=source)
    else:
        model.save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)
    codec.image_processor.save_pretrained(folder)
    origin = Path(source)
    if origin.is_dir():
        for path in origin.iterdir():
            if path.is_file() and path.name not in _OWN and not path.name.endswith(_WEIGHTS):
                shutil.copyfile(path, folder / path.name)


def refuse_broken(model: Any) -> None:
    """Raises `TrainingStopped` when a weight is not finite."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingStopped(
                f"the weight {name!r} is not finite: it is not saved; resume from the last checkpoint"
            )


def export_model(model: Any, codec: Codec, folder: Path, *, source: str) -> None:
    """`save_model` beside `folder`, then moved into place: it is whole, or as it was (killed between, as `….old`)."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        save_model(model, codec, part, source=source)
        replace_folder(part, folder)
    except Exception as error:  # safetensors reports a full disk by an error of its own
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, AgentVisionError):
            raise
        raise RunError(f"{folder}: cannot write the exported model: {error}; free space, then --resume") from error
