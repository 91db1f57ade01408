"""One forward pass of a Qwen-VL language model over ragged rows, and its vision tower over unique images.

The layers are the model's own modules, called one by one, because the library's loop cannot do three things that the
rollout needs: write keys at a column of its own for each row, attend with grouped heads without copying keys and values
(at 7 query heads a key head that copy is most of a decode step), and compute in the last layer only the positions whose
logits are wanted. Equality with the library's forward pass is tested, not assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from agentvision.errors import ModelError
from agentvision.policies._kv_pool import KVShape, KVWindow
from agentvision.tokens import Pixels
from agentvision.vision_tower import use_matrix_patches

_LAYER_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
_ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")


@dataclass(frozen=True, slots=True)
class Ragged:
    """A batch of new tokens, right-padded to T, for rows that may hold some already.

    `embeds` (B, T, H); `positions` (3, B, T); `past` (B,) tokens each row holds; `lengths` (B,) new tokens of each row;
    `fresh` says that `past` is all zero.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    past: torch.Tensor
    lengths: torch.Tensor
    fresh: bool


def _copy(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy with weights of its own, in another type where one is given.

    Buffers keep their type, rotary frequencies want their precision; frozen parameters of the same type are shared.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        own = p.requires_grad or dtype not in (None, p.dtype)
        memo[id(p)] = nn.Parameter(p.detach().to(dtype or p.dtype, copy=True), requires_grad=False) if own else p
    return deepcopy(model, memo)


class Network:
    """A `Qwen2_5_VLForConditionalGeneration` (or Qwen2-VL) as the engine uses it.

    It shares the module; with a `compute_dtype` that is not the module's, or after `copy_weights`, it has one of its own.
    """

    def __init__(self, model: nn.Module, *, compute_dtype: torch.dtype | None = None) -> None:
        use_matrix_patches(model)
        self._original = model
        if compute_dtype is not None and any(p.dtype != compute_dtype for p in model.parameters()):
            model = _copy(model, compute_dtype)
        self._use(model)
        self._check()
        config = self._text.config
        weight = self._text.embed_tokens.weight
        attention = self._text.layers[0].self_attn
        self.vocab_size: int = self._head.weight.shape[0]
        self.merge: int = self._visual.spatial_merge_size
        self.kv_shape = KVShape(
            layers=len(self._text.layers),
            heads=config.num_key_value_heads,
            size=attention.head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )

    def _use(self, model: nn.Module) -> None:
        self.model: Any = model
        inner = getattr(model, "model", None)
        self._text: Any = getattr(inner, "language_model", None)
        self._visual: Any = getattr(inner, "visual", None)
        self._head: Any = getattr(model, "lm_head", None)

    def _check(self) -> None:
        name = type(self.model).__name__
        if self._text is None or self._visual is None or self._head is None:
            raise ModelError(
                f"{name!r} is not a model of the Qwen2-VL or Qwen2.5-VL family, which is what this policy runs;"
                " take one of those, or serve the model and use another policy"
            )
        layer = self._text.layers[0]
        missing = [p for p in _LAYER_PARTS if not hasattr(layer, p)]
        missing += [p for p in _ATTENTION_PARTS if not hasattr(layer.self_attn, p)]
        more = [p for p in ("q_norm", "k_norm") if hasattr(layer.self_attn, p)]
        if missing or more:
            differs = f"without {', '.join(missing)}" if missing else f"with {', '.join(more)}"
            raise ModelError(f"{name!r} has layers unlike Qwen2.5-VL's ({differs}); serve it, or use another policy")
        if getattr(self._text, "has_sliding_layers", False):
            raise ModelError(f"{name!r} uses sliding-window attention, which this policy does not; switch it off")

    @property
    def device(self) -> torch.device:
        return self.kv_shape.device

    @property
    def is_copy(self) -> bool:
        return self.model is not self._original

    def copy_weights(self) -> None:
        """Compute with a copy from now on."""
        if not self.is_copy:
            self._use(_copy(self._original, None).eval())

    def refresh(self) -> None:
        """Take over the weights of the original where this is a copy of it."""
        if self.is_copy:
            for copied, weight in zip(self.model.parameters(), self._original.parameters(), strict=True):
                if copied is not weight:
                    copied.copy_(weight)

    def eval(self) -> None:
        """Leave training mode if the trainer left the shared module in it."""
        if self.model.training:
            self.model.eval()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """(…,) int64 → (…, H)."""
        return self._text.embed_tokens(ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, H) → (B, V)."""
        return self._head(hidden)

    def images(self, pixels: Sequence[Pixels]) -> list[torch.Tensor]:
        """The language model's embeddings (tokens, H) of each image, all through the vision tower in one call."""
        values = torch.cat([p.values for p in pixels]).to(self.device)
        grids = torch.tensor([p.grid for p in pixels], device=self.device)
        output = self.model.model.get_image_features(values, grids, return_dict=True)
        return [e.to(self.kv_shape.dtype) for e in output.pooler_output]

    def last_hidden(self, batch: Ragged, window: KVWindow) -> torch.Tensor:
        """Run `batch`, writing keys and values into `window`; the normalised state (B, H) of each row's last token."""
        x = batch.embeds
        rows, width = x.shape[:2]
        cos, sin = (t[:, :, None] for t in self._text.rotary_emb(x, batch.positions))  # (B, T, 1, D)
        steps = torch.arange(width, device=x.device)
        columns = batch.past[:, None] + steps  # (B, T)
        last = batch.lengths - 1
        pick = torch.arange(rows, device=x.device), last
        mask = None if batch.fresh else _additive_mask(columns, window.length, x.dtype)
        final = len(self._text.layers) - 1
        for k, layer in enumerate(self._text.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(x)
            key = _rotate(attention.k_proj(normed).view(rows, width, -1, attention.head_dim), cos, sin)
            value = attention.v_proj(normed).view(rows, width, -1, attention.head_dim)
            if batch.fresh:
                window.write_left(k, key, value)
            else:
                window.write(k, columns, key, value)
                key, value = window.keys[k], window.values[k]
            causal = batch.fresh
            if k == final and width > 1:
                # Only the last token of each row is wanted from here on.
                x, normed, cos, sin = x[pick][:, None], normed[pick][:, None], cos[pick][:, None], sin[pick][:, None]
                mask = _additive_mask(columns[pick][:, None], key.shape[1], x.dtype)
                causal = False
            query = _rotate(attention.q_proj(normed).view(rows, x.shape[1], -1, attention.head_dim), cos, sin)
            mixed = _attend(query, key, value, mask, scale=attention.scaling, causal=causal)
            x = x + attention.o_proj(mixed)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self._text.norm(x)[:, 0]


def _additive_mask(columns: torch.Tensor, key_length: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, T, L): 0 where a token at its column of `columns` (B, T) may look (there and left of it), else -inf."""
    hidden = torch.arange(key_length, device=columns.device) > columns[:, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=columns.device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, T, heads, D) by cos and sin (B, T, 1, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """Attention of query (B, T, Hq, D) over key and value (B, L, Hkv, D); returns (B, T, Hq·D)."""
    rows, width, heads, size = query.shape
    groups = heads // key.shape[2]
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    if width == 1:
        # The query heads of one key head stand in for query positions: grouped attention without repeating keys.
        grouped = query.view(rows, heads // groups, groups, size)
        if mask is not None:
            mask = mask.expand(-1, -1, groups, -1)
        mixed = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
        return mixed.reshape(rows, 1, heads * size)
    if groups > 1 and mask is not None and key.is_cuda:
        # CUDA's fast kernels take a mask or grouped heads, not both.
        key, value, groups = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1), 1
    mixed = scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
    )
    return mixed.transpose(1, 2).reshape(rows, width, heads * size)
