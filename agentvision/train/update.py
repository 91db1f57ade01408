"""One optimizer update: examples in, weights moved, numbers out.

The update is normalised by counts over all micro-batches and ranks, so how it is cut changes memory and speed and not the
gradient. Without a correction the old log-probs of the ratio are those recorded at sampling: they belong to the distribution
that drew the tokens, whatever happened to the weights since. With one they are the trainer's own at the beginning of the
step, and the rest of the ratio is a bounded weight (see `correction`). Either way what the trainer computes with the weights
of the step's beginning is measured against what was recorded, before anything is bounded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from agentvision.recipe.schema import Algorithm
from agentvision.train.batch import Example, MicroBatch, micro_batches
from agentvision.train.correction import Mismatch, importance_weights, is_bounded, log_importance, mismatch
from agentvision.train.forward import PixelSource, SampledTokens, image_features
from agentvision.train.losses import (
    LossCounts,
    LossNorm,
    grpo_loss,
    is_clipped,
    supervised_loss,
    token_weights,
)
from agentvision.train.reference import Reference
from agentvision.types import ImageHash, TextSegment

_NOTHING = Example((TextSegment((0,)), TextSegment((0,), sampled=True, logprobs=(0.0,))), advantage=0.0)
"""What a rank computes that has not even a spare example: every episode of its own failed before a token was sampled."""


@dataclass(slots=True)
class UpdateStats:
    """Sums over the micro-batches of one update, of all ranks; `loss`, `kl` and `entropy` are already weighted means.

    `kl` is nan where there is no reference to measure it against.
    """

    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    tokens: int = 0
    clipped: int = 0
    ratio_max: float = 1.0
    """Of new / old, before the clipping."""
    measured: int = 0
    """Tokens whose log-probs at the step's beginning were compared with those recorded: what follows is about them."""
    logprob_diff_sum: float = 0.0
    logprob_diff_max: float = 0.0
    importance_sum: float = 0.0
    """Of the raw ratios proximal / sampled, before any bound."""
    importance_square_sum: float = 0.0
    importance_max: float = 0.0
    importance_min: float = math.inf
    bounded: int = 0
    """Tokens whose ratio the correction truncated or masked."""
    grad_norm: float = 0.0
    finite: bool = True
    """False: the update was skipped and no weight touched."""

    def measure(self, found: Mismatch) -> None:
        """Add one micro-batch's."""
        self.measured += found.tokens
        self.logprob_diff_sum += found.diff_sum
        self.logprob_diff_max = max(self.logprob_diff_max, found.diff_max)
        self.importance_sum += found.ratio_sum
        self.importance_square_sum += found.ratio_square_sum
        self.importance_max = max(self.importance_max, found.ratio_max)
        self.importance_min = min(self.importance_min, found.ratio_min)


@dataclass(slots=True)
class Updater:
    """What an update needs. `scorer` is the prepared (DDP, FSDP) module around `SampledTokens`."""

    accelerator: Accelerator
    scorer: nn.Module
    optimizer: torch.optim.Optimizer
    algorithm: Algorithm
    grad_clip: float
    micro_batch_tokens: int
    max_tokens: int
    """Tokens a turn may have: the length of the norm "constant"."""
    merge: int = 2
    reference: Reference | None = None
    _features: dict[ImageHash, Tensor] = field(default_factory=dict)
    _fresh: bool = True
    """Whether the weights are those that the step began with."""

    @property
    def model(self) -> Any:
        return cast("SampledTokens", self.accelerator.unwrap_model(self.scorer)).model

    def begin_step(self) -> None:
        """The weights are now those of a step's beginning; the features of a frozen tower are of other images."""
        self._features.clear()
        self._fresh = True

    def with_proximal(
        self, examples: Sequence[Example], pixels: PixelSource, *, spare: Example | None = None
    ) -> list[Example]:
        """The examples with their log-probs under the weights as they are: for a step of several updates."""
        found: defaultdict[int, list[float]] = defaultdict(list)
        batches, counts = self._plan(examples, spare)
        for index, batch in enumerate(batches):
            with torch.no_grad():
                scored = self.scorer(batch, pixels, self._frozen_features(batch, pixels))
            if index < len(batches) - counts.spare:
                for owner, logprob in zip(batch.owners.tolist(), scored.logprobs.tolist(), strict=True):
                    found[owner].append(logprob)
        return [replace(example, proximal=tuple(found[i])) for i, example in enumerate(examples)]

    def reinforce(
        self, examples: Sequence[Example], pixels: PixelSource, *, spare: Example | None = None
    ) -> UpdateStats:
        """One GRPO update on these examples of this rank (VisionThink, Eq. 3). `spare` keeps a rank without any in step."""
        batches, counts = self._plan(examples, spare)
        stats = UpdateStats(kl=math.nan if self.reference is None else 0.0)
        algorithm, correction = self.algorithm, self.algorithm.correction
        clip_high = algorithm.clip if algorithm.clip_high is None else algorithm.clip_high
        bound: dict[str, Any] = {}
        if correction.kind != "none":
            bound = {"kind": correction.kind, "threshold": correction.threshold}
        self._start()
        for index, batch in enumerate(batches):
            features = self._frozen_features(batch, pixels)
            with self._sync(last=index == len(batches) - 1):
                reference_N = self._reference_logprobs(batch, pixels, features)
                scored = self.scorer(batch, pixels, features)
                logprobs_N = scored.logprobs.detach()
                # In a step's only update what the trainer computes is what it computed at the beginning.
                proximal_N = logprobs_N if batch.proximal is None else batch.proximal
                ratios_N = log_importance(proximal_N, batch.recorded, batch.owners, level=correction.level)
                old_N = batch.recorded if correction.kind == "none" else proximal_N
                parts = grpo_loss(
                    scored.logprobs,
                    scored.entropy,
                    old_logprobs_N=old_N,
                    reference_N=reference_N,
                    advantages_N=batch.advantages,
                    weights_N=self._weights(
                        batch, counts, algorithm.loss_norm, spare=index >= len(batches) - counts.spare
                    ),
                    importance_N=importance_weights(ratios_N, **bound) if bound else None,
                    clip_low=algorithm.clip,
                    clip_high=clip_high,
                    kl_coef=algorithm.kl.coef,
                    kl_estimator=algorithm.kl.estimator,
                    entropy_coef=algorithm.entropy,
                )
                self._backward(parts.loss)
            if index >= len(batches) - counts.spare:
                continue
            clipped_N = is_clipped(logprobs_N, old_N, batch.advantages, clip_low=algorithm.clip, clip_high=clip_high)
            stats.loss += parts.loss.item()
            stats.kl += parts.kl.item()
            stats.entropy += parts.entropy.item()
            stats.tokens += batch.tokens
            stats.clipped += int(clipped_N.sum())
            stats.ratio_max = max(stats.ratio_max, float((logprobs_N - old_N).max().exp()))
            if self._fresh or batch.proximal is not None:
                stats.measure(mismatch(proximal_N, batch.recorded, ratios_N))
            if bound:
                stats.bounded += int(is_bounded(ratios_N, **bound).sum())
        return self._step(stats)

    def imitate(self, examples: Sequence[Example], pixels: PixelSource, *, spare: Example | None = None) -> UpdateStats:
        """One supervised update: cross-entropy on the examples' own tokens, a mean over each one's and then over them."""
        batches, counts = self._plan(examples, spare)
        stats = UpdateStats()
        self._start()
        for index, batch in enumerate(batches):
            is_spare = index >= len(batches) - counts.spare
            features = self._frozen_features(batch, pixels)
            with self._sync(last=index == len(batches) - 1):
                scored = self.scorer(batch, pixels, features)
                weights_N = self._weights(batch, counts, "trajectory", spare=is_spare)
                loss = supervised_loss(scored.logprobs, weights_N=weights_N)
                self._backward(loss)
            if not is_spare:
                stats.loss += loss.item()
                stats.entropy += float((weights_N * scored.entropy.detach()).sum())
                stats.tokens += batch.tokens
        return self._step(stats)

    # --- the parts of an update ---------------------------------------------------------------------------------------

    def _plan(self, examples: Sequence[Example], spare: Example | None) -> tuple[list[MicroBatch], _Counts]:
        """This rank's micro-batches, filled up with spare ones to the number that the busiest rank has."""
        device = self.accelerator.device
        config = self.model.config
        options: dict[str, Any] = {
            "max_tokens": self.micro_batch_tokens,
            "merge": self.merge,
            "share": config._attn_implementation in ("sdpa", "eager"),
            "hidden": config.get_text_config().hidden_size,
        }
        batches = micro_batches(examples, **options)
        used = [example for example in examples if example.sampled]
        local = torch.tensor([len(used), sum(e.sampled for e in used)], device=device)
        trajectories, tokens = cast("Tensor", self.accelerator.reduce(local, "sum")).tolist()
        most = int(cast("Tensor", self.accelerator.gather(torch.tensor([len(batches)], device=device))).max())
        missing = most - len(batches)
        if missing:
            filler = batches[0] if batches else micro_batches([spare or _NOTHING], **options)[0]
            batches = [*batches, *[filler] * missing]
        counts = _Counts(LossCounts(trajectories, tokens, self.max_tokens), missing)
        return [batch.to(device) for batch in batches], counts

    def _weights(self, batch: MicroBatch, counts: _Counts, norm: LossNorm, *, spare: bool) -> Tensor:
        weights_N = token_weights(batch.lengths, counts=counts.loss, norm=norm)
        return torch.zeros_like(weights_N) if spare else weights_N

    def _start(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)

    def _sync(self, *, last: bool) -> Any:
        """Gradients travel between ranks once an update, with the last micro-batch."""
        return nullcontext() if last else self.accelerator.no_sync(self.scorer)

    def _backward(self, loss: Tensor) -> None:
        # DDP and FSDP average over ranks; the loss is already each rank's share of the whole.
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def _step(self, stats: UpdateStats) -> UpdateStats:
        parameters = [p for p in self.scorer.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, self.grad_clip)
        stats.grad_norm = float(norm) if norm is not None else 0.0
        if self.accelerator.num_processes > 1:
            self._sum_over_ranks(stats)
        stats.finite = math.isfinite(stats.loss) and math.isfinite(stats.grad_norm)
        if stats.finite:
            self.optimizer.step()
            self._fresh = False
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        return stats

    def _sum_over_ranks(self, stats: UpdateStats) -> None:
        """Make each rank's share the whole; a loss that is not finite anywhere is so everywhere."""
        counts = ("tokens", "clipped", "measured", "bounded")
        sums = ("loss", "kl", "entropy", "logprob_diff_sum", "importance_sum", "importance_square_sum")
        maxima = ("logprob_diff_max", "ratio_max", "importance_max")
        names = (*counts, *sums, *maxima, "importance_min")
        values = torch.tensor([float(getattr(stats, name)) for name in names], dtype=torch.float64)
        ranks = cast("Tensor", self.accelerator.gather(values.to(self.accelerator.device)[None]))
        for name, column in zip(names, ranks.unbind(1), strict=True):
            if name in counts:
                setattr(stats, name, int(column.sum()))
            elif name in sums:
                setattr(stats, name, float(column.sum()))
            else:
                setattr(stats, name, float(column.max() if name in maxima else column.min()))

    def _reference_logprobs(
        self, batch: MicroBatch, pixels: PixelSource, features: dict[ImageHash, Tensor] | None
    ) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad(), self.accelerator.autocast():
            return self.reference(batch, pixels, features).logprobs

    def _frozen_features(self, batch: MicroBatch, pixels: PixelSource) -> dict[ImageHash, Tensor] | None:
        """The features of a tower that is not trained, each image once a step; None where it is trained."""
        if any(p.requires_grad for p in self.model.model.visual.parameters()):
            return None
        missing = [image for image in batch.images if image not in self._features]
        if missing:
            with torch.no_grad(), self.accelerator.autocast():
                self._features.update(image_features(self.model, missing, pixels))
        return self._features


@dataclass(frozen=True, slots=True)
class _Counts:
    loss: LossCounts
    spare: int
    """Micro-batches at the end that only keep this rank in step with the others."""
