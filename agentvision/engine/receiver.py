"""vLLM's weight-transfer engine for weights that are carried here. Imported by vLLM's workers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from agentvision.engine.carry import taken
from agentvision.engine.digest import tensor_digest
from agentvision.engine.worker import RECEIVED


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: each update says how its tensors come."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket: `places` in the shared `memory`, or the `tensors` themselves in the trainer's own process."""

    places: Sequence[Mapping[str, Any]] = ()
    memory: str | None = None
    tensors: Sequence[tuple[str, Tensor]] | None = None


class WeightReceiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads buckets as a checkpoint's tensors, so that vLLM joins, shards and packs them as it did at its start."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        RECEIVED.clear()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        there = [(name, tensor.to(self.device)) for name, tensor in taken(vars(update_info))]
        for name, tensor in there:
            RECEIVED[name] = tensor_digest(tensor)
        model: Any = self.model
        model.load_weights(there)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            # A head that is tied to the embeddings loads nothing itself, and on a CPU it computes with a packed copy.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held."""
