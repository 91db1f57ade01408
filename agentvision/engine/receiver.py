"""vLLM's weight-transfer engine for weights that are carried here. Imported by vLLM's workers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.parallel_state import get_tp_group
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from agentvision.engine.adapter import HELD
from agentvision.engine.carry import taken
from agentvision.engine.digest import tensor_digest
from agentvision.engine.lend import fetched
from agentvision.engine.types import EngineError
from agentvision.engine.worker import PROBLEMS, RECEIVED


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: each update says how its tensors come."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket: what a `carry.Carrier` says of it."""

    places: Sequence[Mapping[str, Any]] = ()
    memory: str | None = None
    lent: Mapping[str, Any] | None = None
    tensors: Sequence[tuple[str, Tensor]] | None = None


class WeightReceiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads buckets as a checkpoint's tensors, so that vLLM joins, shards and packs them as it did at its start.

    An adapter's tensors are kept for `engine.adapter`.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to connect."""

    _is_adapter = False

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        RECEIVED.clear()
        PROBLEMS.clear()
        self._is_adapter = HELD.begin()
        if self._is_adapter:
            return
        if getattr(self.model, "lora_manager", None) is not None:
            PROBLEMS.append("it was started with --enable-lora, and then takes adapters alone: start it without")
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        try:
            there = [(name, tensor.to(self.device)) for name, tensor in taken(vars(update_info), self._fetched)]
            if not PROBLEMS:
                for name, tensor in there:
                    RECEIVED[name] = tensor_digest(tensor)
                if self._is_adapter:
                    HELD.tensors |= {name: tensor.to("cpu", copy=True) for name, tensor in there}
                else:
                    model: Any = self.model
                    model.load_weights(there)
        except Exception as error:
            # The trainer asks for it. When a worker raises, vLLM leaves the replies of the others to be read, and takes them for
            # those to its next call.
            PROBLEMS.append(_told(error))

    def _fetched(self, lent: Mapping[str, Any]) -> Tensor:
        """The bytes (n,) of a bucket that is lent, on the device: the first worker of a group fetches them for all.

        Whatever fails at the first fails at all of them, so that none waits for another.
        """
        group = get_tp_group()
        memory, problem = None, None
        if group.rank_in_group == 0:
            try:
                problem = "".join(PROBLEMS[:1])
                memory = None if problem else fetched(lent).to(self.device)
            except Exception as error:
                problem = _told(error)
        if problem := group.broadcast_object(problem, src=0):
            raise EngineError(problem)
        if memory is None:
            memory = torch.empty(lent["bytes"], dtype=torch.uint8, device=self.device)
        return group.broadcast(memory, src=0)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        if self._is_adapter:
            return
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            # A head that is tied to the embeddings loads nothing itself, and on a CPU it computes with a packed copy.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held."""


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
