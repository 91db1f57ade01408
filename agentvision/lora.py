"""LoRA inside the module that is trained: put there by peft, switched off for a moment, written, read, and merged on its way out.

The module keeps its class and its layers' names; an adapted layer computes W·x + s·B·A·x and holds W as `base_layer`. Nobody
merges in place: `plain_parameters` gives the merged weights one by one, so W never changes and never gathers rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agentvision.errors import ModelError, RunError, first_line, suggest
from agentvision.recipe.lora import VISUAL
from agentvision.shards import whole

if TYPE_CHECKING:
    from agentvision.recipe.lora import Lora

_NAME = "default"
_PEFT = "base_model.model."
"""What peft writes before the names of the module's own."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_LANGUAGE, _TOWER = "model.language_model.", "model.visual."


def add_adapter(model: nn.Module, settings: Lora) -> None:
    """Adapt the layers that the settings name; only the adapters can be trained from then on, and they are float32.

    A new adapter changes nothing: its B is zero.

    Raises:
        ModelError: a target matches no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float is as good
        lora_dropout=settings.dropout,
        target_modules=targets_of(model, settings),
    )
    mode = model.training
    inject_adapter_in_model(config, model, adapter_name=_NAME)
    for _, layer in _layers(model):
        for part in (layer.lora_A, layer.lora_B):
            part.float()
    model.train(mode)


def targets_of(model: nn.Module, settings: Lora) -> list[str]:
    """The names of the layers to adapt. Raises `ModelError` when a target is none of them."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    language = [name for name in linear if name.startswith(_LANGUAGE)]
    if settings.targets is None:
        return language
    tower = [name for name in linear if name.startswith(_TOWER)]
    found: dict[str, None] = {}
    for target in settings.targets:
        part, end = (tower, target.removeprefix(VISUAL)) if target.startswith(VISUAL) else (language, target)
        names = [name for name in part if name == end or name.endswith(f".{end}")]
        if not names:
            before, where = (VISUAL, "vision tower") if part is tower else ("", "language model")
            ends = {before + ".".join(name.split(".")[-k:]) for name in part for k in (1, 2)}
            raise ModelError(
                f"model.lora.targets: {target!r} is the end of no linear layer's name in the {where}.{suggest(target, ends)}"
            )
        found |= dict.fromkeys(names)
    return list(found)


def is_adapted(model: nn.Module) -> bool:
    return any(True for _ in _layers(model))


def adapter_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapter's parameters by the names that peft's files have; none where there is no adapter."""
    for name, parameter in model.named_parameters():
        if f".{_NAME}." in name and ".lora_" in name:
            yield _PEFT + name.replace(f".{_NAME}.", "."), parameter


def adapter_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """`adapter_parameters` as whole tensors. Gathering shards is collective."""
    for name, parameter in adapter_parameters(model):
        yield name, whole(parameter)


def adapter_shape(model: nn.Module) -> dict[str, Any]:
    """What is to be known of an adapter to compute with its tensors: its rank, and its alpha."""
    config = adapter_config(model)
    return {"rank": config["r"], "alpha": config["lora_alpha"]}


def adapter_config(model: nn.Module) -> dict[str, Any]:
    """What peft's file says of the adapter, in an order that does not change."""
    config = model.peft_config[_NAME].to_dict()  # type: ignore[index,union-attr]
    return {key: sorted(value) if isinstance(value, (set, list)) else value for key, value in sorted(config.items())}


def plain_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors of a model without an adapter that computes the same: W + s·B·A for an adapted W.

    Tied ones once. Shards (FSDP) are gathered, which is collective: every rank must go through.
    """
    adapted = {f"{name}.base_layer.weight": layer for name, layer in _layers(model)}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        weight = whole(parameter)
        if (layer := adapted.get(name)) is not None:
            low, high = whole(layer.lora_A[_NAME].weight), whole(layer.lora_B[_NAME].weight)
            weight = (weight.float() + layer.scaling[_NAME] * (high @ low)).to(weight.dtype)
        yield name.replace(".base_layer.", "."), weight


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """What the module computes without its adapter."""
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        layer._disable_adapters = True  # peft's own switch also takes requires_grad away
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_adapter(model: nn.Module, folder: Path, *, source: str) -> None:
    """Write the adapter as peft does. `source` is the folder or hub id of the model that it belongs to."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_tensors(model)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = adapter_config(model) | {"base_model_name_or_path": source, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Take the values of an adapter that `save_adapter` wrote. Raises `RunError` when it is another one, or broken."""
    tensors = read_adapter(folder)
    own = dict(adapter_parameters(model))
    different = own.keys() ^ tensors.keys() or {n for n in own if own[n].shape != tensors[n].shape}
    if different:
        raise RunError(
            f"{folder}: its adapter is not the one of model.lora; they differ in {len(different)} tensors, as in "
            f"{min(different)!r}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's folder, by peft's names. Raises `RunError` when they cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder / WEIGHTS}: the adapter cannot be read: {first_line(error)}") from error


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The adapted layers, by name."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict):
            yield name, module
