"""Everything that learns, made from a recipe: policy, model, optimizer, rewards.

The trainer owns the model; "sync" is telling the policy that its weights are new. Where rollouts and updates take turns, a
policy in this process computes with that very model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from torch import nn

from agentvision import build
from agentvision._workers import run_sync
from agentvision.engine.ranks import ranks
from agentvision.errors import ModelError, PluginError, RunError
from agentvision.lora import is_adapted, load_adapter, read_adapter, save_adapter
from agentvision.policy import TrainablePolicy
from agentvision.recipe import Recipe
from agentvision.rewards import Rewards
from agentvision.tokens import Codec
from agentvision.tool import Tool
from agentvision.train.export import ADAPTER, refuse_broken, save_model
from agentvision.train.forward import SampledTokens
from agentvision.train.lockstep import Batching
from agentvision.train.optimizer import make_optimizer
from agentvision.train.reference import AdapterReference, CopiedReference
from agentvision.train.update import Updater
from agentvision.vision_tower import use_window_batches

_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}


@dataclass(slots=True)
class Learner:
    """`source` is the folder or hub id that the model's small files come from."""

    policy: TrainablePolicy
    model: Any
    """The module that is trained: `policy.model`."""
    codec: Codec
    tools: list[Tool]
    rewards: Rewards
    optimizer: torch.optim.Optimizer
    updater: Updater
    source: str
    lockstep: bool
    """Whether rollouts are batched so that they repeat bit for bit: on a CPU, where everything else does, and when no update
    runs beside them."""

    def write(self, folder: Path) -> None:
        """The large files of a checkpoint: `model/` (the adapter alone, where there is one) and `optimizer.pt`."""
        if is_adapted(self.model):
            refuse_broken(self.model)
            save_adapter(self.model, folder / "model", source=self.source)
        else:
            save_model(self.model, self.codec, folder / "model", source=self.source)
        tensors = {"optimizer": self.optimizer.state_dict(), "torch": torch.get_rng_state()}
        torch.save(tensors, folder / "optimizer.pt")

    def read(self, folder: Path) -> None:
        """The optimizer of a checkpoint; its model was loaded when the learner was made."""
        try:
            tensors = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(tensors["optimizer"])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"{folder / 'optimizer.pt'}: cannot be read: {error}; move this checkpoint away") from error
        torch.set_rng_state(tensors["torch"])

    def reset_reference(self) -> None:
        """Take the weights as they are now for the reference."""
        if self.updater.reference is not None:
            self.updater.reference.take(self.model)


_PATIENCE = timedelta(hours=1)
"""How long training processes wait for one another."""


def make_accelerator(recipe: Recipe) -> Accelerator:
    """accelerate's view of where this process stands: one of one, or of a `torchrun`/`accelerate launch`."""
    from accelerate.state import AcceleratorState

    options: dict[str, Any] = {
        "mixed_precision": recipe.trainer.mixed_precision,
        # Without it, where there is no GPU, accelerate takes each rank of a launch for one alone.
        "cpu": recipe.model.device == "cpu" or not torch.accelerator.is_available(),
        # Ranks wait for the first one's servers to start, its evaluation, its checkpoint.
        "kwargs_handlers": [InitProcessGroupKwargs(timeout=_PATIENCE)],
    }
    try:
        accelerator = Accelerator(**options)
    except ValueError:  # its state is global, and an earlier run in this process had other settings
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(**options)
    if accelerator.num_processes != (launched := ranks()):
        raise RunError(
            f"{launched} processes were launched, and accelerate takes each for one alone: they would be runs of their own in "
            "one folder; set model.device to what all of them have (cpu, cuda)"
        )
    return accelerator


def make_learner(
    recipe: Recipe, accelerator: Accelerator, *, model: Path | None, reference: Path | None, logs: Path | None = None
) -> Learner:
    """Build what the recipe names.

    `model` is a folder to take the weights from in place of the recipe's (a resumed run), and `reference` one for the
    reference of the KL, where that did not start from the recipe's model either. Where an adapter is trained, both hold one,
    and the model is the recipe's. `logs` is for servers that are started.
    """
    if accelerator.distributed_type in _SHARDING:
        raise ModelError(
            f"accelerate is set up to shard the model ({accelerator.distributed_type.value}), and checkpoints of shards cannot "
            "be written: launch plain data parallel training (`accelerate launch --multi_gpu`), with model.lora where the "
            "optimizer of all weights does not fit"
        )
    if recipe.model.device == "auto":
        settings = recipe.model.model_copy(update={"device": str(accelerator.device)})
        recipe = recipe.model_copy(update={"model": settings})
    policy, codec = _trainable(recipe, None if recipe.model.lora else model, logs=logs)
    try:
        return _learner(recipe, accelerator, policy, codec, model=model, reference=reference)
    except BaseException:
        run_sync(policy.close)  # an engine, or servers
        raise


def _learner(
    recipe: Recipe,
    accelerator: Accelerator,
    policy: TrainablePolicy,
    codec: Codec,
    *,
    model: Path | None,
    reference: Path | None,
) -> Learner:
    lora = recipe.model.lora
    net: Any = policy.model
    if lora and model is not None:
        load_adapter(net, model)
    if recipe.model.gradient_checkpointing:
        net.gradient_checkpointing_enable()
    if not lora:
        freeze(net, recipe.model.freeze)
    use_window_batches(net)
    overlaps = recipe.trainer.max_staleness > 0
    if overlaps:
        policy.samples_from_copy = True
    lockstep = accelerator.device.type == "cpu" and isinstance(policy, Batching) and not overlaps
    if not any(p.requires_grad for p in net.model.visual.parameters()):
        policy.vision_frozen = not lockstep  # embeddings kept over steps would be missing after a resume
    if not any(p.requires_grad for p in net.parameters()):
        raise ModelError(f"model.freeze={list(recipe.model.freeze)!r} leaves nothing to train")
    scorer = SampledTokens(
        net,
        temperature=recipe.sampling.temperature,
        banned_ids=codec.banned_ids,
        entropy_grad=recipe.algorithm.entropy > 0,
        touch_all=accelerator.num_processes > 1,
    )
    scorer = scorer.to(accelerator.device)
    kept: CopiedReference | None = None
    if recipe.algorithm.kl.coef > 0 and not lora:
        kept = CopiedReference(scorer)
        if model is not None:  # a resumed run: the reference is what the run started from
            # Only its weights are wanted: by transformers, or an engine would be started for them.
            plain = recipe.model_copy(update={"policy": type(recipe.policy)()})
            start, _ = _trainable(plain, reference)
            kept.take(start.model)
    optimizer = make_optimizer(net, recipe.trainer)
    prepared, optimizer = accelerator.prepare(scorer, optimizer)
    under: AdapterReference | None = None
    if recipe.algorithm.kl.coef > 0 and lora:
        under = AdapterReference(prepared, net)
        if reference is not None:
            under.start_from(read_adapter(reference / ADAPTER))
    updater = Updater(
        accelerator=accelerator,
        scorer=prepared,
        optimizer=optimizer,
        algorithm=recipe.algorithm,
        grad_clip=recipe.trainer.grad_clip,
        micro_batch_tokens=recipe.trainer.micro_batch_tokens or _MICRO_BATCH_TOKENS.get(accelerator.device.type, 16384),
        max_tokens=recipe.sampling.max_tokens,
        merge=codec.vision.merge,
        reference=kept or under,
    )
    return Learner(
        policy=policy,
        model=net,
        codec=codec,
        tools=build.build_tools(recipe),
        rewards=build.build_rewards(recipe),
        optimizer=optimizer,
        updater=updater,
        source=build.model_path(recipe.model.path),
        lockstep=lockstep,
    )


def _trainable(recipe: Recipe, model: Path | None, *, logs: Path | None = None) -> tuple[TrainablePolicy, Codec]:
    """The recipe's policy, with the weights of the folder `model` where there is one. Raises `PluginError`."""
    policy = build.build_policy(recipe, model=model, train=True, logs=logs)
    if not isinstance(policy, TrainablePolicy) or not policy.trainable or policy.codec is None:
        raise PluginError(
            f"policy.backend {recipe.policy.backend!r} cannot be trained: it does not give the exact ids and log-probs of "
            "what was sampled. Train with 'transformers', then use the exported model with any backend"
        )
    return policy, policy.codec


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Keep the weights of `vision` (the tower) or `projector` (what joins it to the language model)."""
    visual = cast("Any", model).model.visual
    for name, parameter in visual.named_parameters():
        part = "projector" if name.startswith("merger.") else "vision"
        parameter.requires_grad_(part not in parts)
