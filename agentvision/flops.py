"""What a model computes: floating-point operations of a prefill, a turn, an image.

Two counts. `printed_flops` is the formula of the VisionThink paper as printed, for comparing with its figures: it
counts multiply-accumulates, full multi-head attention and a feed-forward of two matrices. `ModelShape` counts a
Qwen2.5-VL as it is: every matrix multiplication at two operations a multiply-accumulate, grouped-query attention,
gated feed-forward, the vision tower with its windows. Norms, activations and rotary embeddings (well under 1 %) are
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentvision.compute import VisionSpec
from agentvision.errors import ModelError
from agentvision.geometry import Size


def printed_flops(tokens: int, *, layers: int, hidden: int, intermediate: int) -> int:
    """T(4nd² + 2n²d + 2ndm): the cost model of arXiv 2507.13348 for n tokens, as printed."""
    n, d, m = tokens, hidden, intermediate
    return layers * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The dimensions of a Qwen2.5-VL that decide its cost."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    vision_full_layers: int
    """Layers of the vision tower that attend over the whole picture; the others stay in windows."""
    vision_window_px: int
    patch_values: int
    """Numbers in one patch: channels · frames · side²."""
    vision: VisionSpec

    @classmethod
    def from_config(cls, config: Any, *, vision: VisionSpec | None = None) -> ModelShape:
        """From a transformers config of a Qwen2.5-VL, or its `to_dict()`. Raises `ModelError` for another family."""
        values: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
        try:
            tower, text = values["vision_config"], values.get("text_config", values)
            spec = vision or VisionSpec()
            return cls(
                layers=text["num_hidden_layers"],
                hidden=text["hidden_size"],
                intermediate=text["intermediate_size"],
                heads=text["num_attention_heads"],
                kv_heads=text["num_key_value_heads"],
                head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
                vocab=text["vocab_size"],
                vision_layers=tower["depth"],
                vision_hidden=tower["hidden_size"],
                vision_intermediate=tower["intermediate_size"],
                vision_full_layers=len(tower["fullatt_block_indexes"]),
                vision_window_px=tower["window_size"],
                patch_values=tower.get("in_channels", 3) * tower["temporal_patch_size"] * tower["patch_size"] ** 2,
                vision=VisionSpec(tower["patch_size"], tower["spatial_merge_size"], spec.min_pixels, spec.max_pixels),
            )
        except KeyError as error:
            raise ModelError(f"the model's config has no {error.args[0]!r}: costs are counted for Qwen2.5-VL") from None

    def language_flops(self, tokens: int, *, context: int = 0, scored: int = 1, causal: bool = True) -> int:
        """Of `tokens` new tokens after `context` cached ones, `scored` of which go through the output layer.

        `causal=False` counts the full square of attention, as kernels that do not skip the masked half compute it.
        """
        n, d = tokens, self.hidden
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        pairs = n * context + (n * (n + 1) // 2 if causal else n * n)
        projections = n * d * (2 * queries + 2 * keys)
        attention = 2 * pairs * queries
        feed_forward = 3 * n * d * self.intermediate
        return 2 * (self.layers * (projections + attention + feed_forward) + scored * d * self.vocab)

    def vision_flops(self, size: Size) -> int:
        """Of the vision tower on one picture of `size` (width, height), fitted first."""
        _, rows, columns = self.vision.grid(size)
        n, d, merge = rows * columns, self.vision_hidden, self.vision.merge
        side = max(1, self.vision_window_px // self.vision.factor) * merge  # patches along a window's side
        windows = sum(min(side, rows - r) ** 2 for r in range(0, rows, side))
        windows *= sum(min(side, columns - c) ** 2 for c in range(0, columns, side))
        full = self.vision_full_layers
        pairs = full * n * n + (self.vision_layers - full) * windows
        blocks = self.vision_layers * n * (4 * d * d + 3 * d * self.vision_intermediate) + 2 * pairs * d
        wide = d * merge**2
        merger = n // merge**2 * (wide * wide + wide * self.hidden)
        return 2 * (n * self.patch_values * d + blocks + merger)
