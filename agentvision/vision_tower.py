"""A Qwen vision tower made several times as fast on a CPU, its weights and their names untouched.

Patches: a convolution that sees every patch alone is written as the matrix product it is.

Windows: Qwen2.5-VL's tower attends within windows and within images, and transformers' scaled-dot-product path calls the kernel
once for each: hundreds of tiny calls a batch. Here windows of equal length are stacked and attended to together. The
library hands over whole sequences with their boundaries only to kernels whose name holds "flash", hence the name.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

NAME = "flash_windows_by_sdpa"


def attend_by_windows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of (1, heads, S, size) within the chunks that `cu_seq_lens_q` bounds; returns (1, S, heads, size)."""
    bounds = cu_seq_lens_q.tolist()
    chunks: dict[int, list[int]] = {}
    for start, stop in pairwise(bounds):
        if stop > start:
            chunks.setdefault(stop - start, []).append(start)
    mixed: list[Tensor] = []
    places: list[Tensor] = []
    for length, starts in chunks.items():
        place = (torch.tensor(starts)[:, None] + torch.arange(length)).flatten().to(query.device)
        q, k, v = (
            t[0].index_select(1, place).unflatten(1, (len(starts), length)).transpose(0, 1) for t in (query, key, value)
        )
        mixed.append(scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1))
        places.append(place)
    order = torch.cat(places).argsort()
    return torch.cat(mixed).index_select(0, order)[None], None


def use_window_batches(model: nn.Module) -> None:
    """Have the vision tower of a model with scaled-dot-product attention attend by `attend_by_windows`."""
    from transformers import AttentionInterface

    visual = getattr(getattr(model, "model", None), "visual", None)
    if visual is None or cast("Any", visual).config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attend_by_windows)
    visual.config._attn_implementation = NAME


class _MatrixPatches(nn.Conv3d):
    """A convolution whose kernel is as large as its input."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input.flatten(1), self.weight.flatten(1), self.bias).view(len(input), -1, 1, 1, 1)


def use_matrix_patches(model: nn.Module) -> None:
    """Have the model's vision tower embed its patches by one matrix product; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.kernel_size == module.stride and module.padding == (0, 0, 0):
            module.__class__ = _MatrixPatches
