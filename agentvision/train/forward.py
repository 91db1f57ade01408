"""Log-probs and entropy of the sampled tokens, and of nothing else.

The vision tower runs once over the unique images of a micro-batch (once an update when it is frozen); the language model
runs on embeddings; the head runs only at positions that predict a sampled token, in chunks that are recomputed in the
backward pass, so that no (tokens, vocabulary) tensor is ever kept. The distribution is the one that was sampled from:
the same temperature, the same banned ids. Everything is one module's `forward`, so that DDP and FSDP see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agentvision.train.batch import MicroBatch
from agentvision.types import ImageHash

if TYPE_CHECKING:
    from agentvision.tokens import Pixels

PixelSource = Callable[[ImageHash], "Pixels"]
"""From an image's hash to its preprocessed patches; cached by the codec."""

CHUNK_LOGITS = 2**25
"""Logits computed at a time (float32: 128 MiB)."""


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Of each sampled token, `(N,)` float32, in the order of `MicroBatch.targets`. Entropy in nats."""

    logprobs: Tensor
    entropy: Tensor


def token_stats(
    hidden_ND: Tensor,
    head: nn.Module,
    targets_N: Tensor,
    *,
    temperature: float,
    banned: Tensor,
    entropy_grad: bool = True,
    chunk_logits: int = CHUNK_LOGITS,
) -> TokenStats:
    """log p(target) and entropy under softmax(logits / temperature) with the banned ids removed.

    At most `chunk_logits` logits are alive at a time; chunks after the first cost a second pass of the head in backward.
    """

    def chunk(hidden_nD: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
        logits_nV = head(hidden_nD).float() / temperature
        # The lowest finite number, not -inf: its probability is 0 all the same, and 0 · lowest is 0 where 0 · -inf is nan.
        logits_nV = logits_nV.index_fill(1, banned, torch.finfo(torch.float32).min)
        total_n = torch.logsumexp(logits_nV, dim=1)
        chosen_n = logits_nV.gather(1, targets_n[:, None]).squeeze(1)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy_n = total_n - (torch.softmax(logits_nV, dim=1) * logits_nV).sum(dim=1)
        return chosen_n - total_n, entropy_n

    vocabulary = cast("Any", head).weight.shape[0]
    size = max(1, chunk_logits // vocabulary)
    if hidden_ND.shape[0] <= size:
        return TokenStats(*chunk(hidden_ND, targets_N))
    parts = [
        checkpoint(chunk, hidden_ND[start : start + size], targets_N[start : start + size], use_reentrant=False)
        for start in range(0, hidden_ND.shape[0], size)
    ]
    return TokenStats(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def _branch_mask(branches_BT: Tensor) -> Tensor:
    """(B, 1, T, T) bool: causal, and only the shared opening and one's own branch. Padding sees padding (no empty row)."""
    own = branches_BT[:, :, None] == branches_BT[:, None, :]
    opening = (branches_BT == 0)[:, None, :]
    length = branches_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branches_BT.device).tril()
    return ((own | opening) & causal)[:, None]


class SampledTokens(nn.Module):
    """A causal vision-language model of the Qwen2-VL family, seen by the trainer: micro-batch in, `TokenStats` out.

    `features` may hold the features of images that need no gradient (a frozen tower); those are not computed again.
    `entropy_grad` says that the entropy is part of a loss; where it is only measured, half of the memory is saved.
    `touch_all` gives every trainable weight a gradient even where a micro-batch has no image: DDP waits for all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float,
        banned_ids: tuple[int, ...],
        chunk_logits: int = CHUNK_LOGITS,
        entropy_grad: bool = True,
        touch_all: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature!r}: log-probs of greedy sampling are not defined; use 1.0")
        self.model = model
        self.temperature = temperature
        self.chunk_logits = chunk_logits
        self.entropy_grad = entropy_grad
        self.touch_all = touch_all
        self.register_buffer("banned", torch.tensor(banned_ids, dtype=torch.long), persistent=False)

    def forward(
        self, batch: MicroBatch, pixels: PixelSource, features: Mapping[ImageHash, Tensor] | None = None
    ) -> TokenStats:
        vl = cast("Any", self.model)
        embeds_BTD = vl.get_input_embeddings()(batch.ids)
        if batch.images:
            images_MD = self._features(batch, pixels, features or {}).to(embeds_BTD.dtype)
            flat_D = embeds_BTD.flatten(0, 1).index_copy(0, batch.image_slots, images_MD[batch.image_sources])
            embeds_BTD = flat_D.view_as(embeds_BTD)
        mask = None
        if batch.branches is not None:
            mask = _branch_mask(batch.branches)
            if vl.config._attn_implementation == "eager":
                mask = torch.zeros(mask.shape, dtype=embeds_BTD.dtype, device=mask.device).masked_fill(
                    ~mask, torch.finfo(embeds_BTD.dtype).min
                )
        hidden_BTD = vl.model.language_model(
            inputs_embeds=embeds_BTD, position_ids=batch.positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        stats = token_stats(
            hidden_BTD.flatten(0, 1)[batch.predictors],
            vl.lm_head,
            batch.targets,
            temperature=self.temperature,
            banned=cast("Tensor", self.banned),
            entropy_grad=self.entropy_grad,
            chunk_logits=self.chunk_logits,
        )
        if self.touch_all and torch.is_grad_enabled():
            nothing = torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum() * 0
            return TokenStats(stats.logprobs + nothing, stats.entropy)
        return stats

    def _features(self, batch: MicroBatch, pixels: PixelSource, known: Mapping[ImageHash, Tensor]) -> Tensor:
        """The concatenated features of the micro-batch's images, `(M', D)`."""
        new = [image for image in batch.images if image not in known]
        found = dict(known)
        if new:
            found.update(image_features(self.model, new, pixels))
        return torch.cat([found[image] for image in batch.images])


def image_features(model: nn.Module, images: list[ImageHash], pixels: PixelSource) -> dict[ImageHash, Tensor]:
    """One pass of the vision tower over these images; the features of each, `(tokens, D)`."""
    vl = cast("Any", model)
    device = vl.get_input_embeddings().weight.device
    prepared = [pixels(image) for image in images]
    grids = torch.tensor([p.grid for p in prepared], device=device)
    values = torch.cat([p.values for p in prepared]).to(device)
    outputs = vl.model.get_image_features(values, grids, return_dict=True).pooler_output
    return dict(zip(images, outputs, strict=True))
