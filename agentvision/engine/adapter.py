"""An adapter (LoRA) in vLLM without a file: its tensors come as weights do, and turns ask for it by one name.

A trainer says that the next update brings an adapter; the receiver then keeps the tensors here in place of loading them. vLLM
loads an adapter when a turn asks for one that it does not have, and forgets all of them when an update ends; where the path
says `PATH` it gets the tensors that were kept, under whatever number it gave the adapter. The model's own weights are never sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.request import LoRARequest

NAME = "agentvision-adapter"
"""What turns ask for."""
PATH = "agentvision:memory"
MAX_RANK = 512
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, MAX_RANK)
"""What vLLM can be started for."""


def room_for(rank: int) -> int:
    """The least rank that vLLM can be started for and that holds this one."""
    return next(room for room in _RANKS if room >= rank)


@dataclass(slots=True)
class Held:
    """What a worker knows of the adapter. A worker is a process, and has one model."""

    expected: Mapping[str, Any] | None = None
    """The next update brings an adapter that is so: `{"rank": …, "alpha": …}`."""
    is_of: Mapping[str, Any] | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By peft's names; copies, because vLLM scales what it is given in place."""

    def begin(self) -> bool:
        """An update begins; whether it brings an adapter."""
        self.is_of, self.expected = self.expected, None
        self.tensors.clear()
        return self.is_of is not None

    def model(self, number: int, manager: Any) -> LoRAModel:
        """The adapter as vLLM has one. Raises `ValueError` when none has come."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        if self.is_of is None or not self.tensors:
            raise ValueError("no adapter has been brought yet")
        adapters = manager._adapter_manager
        mapper = getattr(adapters.model, "hf_to_vllm_mapper", None)
        return LoRAModel.from_lora_tensors(
            number,
            {name: tensor.clone() for name, tensor in self.tensors.items()},
            PEFTHelper(r=self.is_of["rank"], lora_alpha=self.is_of["alpha"], target_modules=[]),
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            weights_mapper=mapper and mapper.get_rename_mapper(),
        )


HELD = Held()


def request() -> LoRARequest:
    """What a turn in this process asks with."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(NAME, 1, PATH)


def register() -> None:
    """Have a server know the adapter by its name, without a list of adapters or a file."""
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class FromMemory(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            return request() if lora_name == NAME else None

    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, FromMemory())


class AdapterReader:
    """The part of a worker's extension that is about adapters."""

    model_runner: Any

    def agentvision_adapter_problem(self, rank: str) -> str:
        """Why this worker cannot take an adapter of that rank, or nothing."""
        manager = getattr(self.model_runner, "lora_manager", None)
        if manager is None:
            return "it was started without --enable-lora"
        room = manager.lora_config.max_lora_rank
        return f"it was started with --max-lora-rank {room}, and the rank is {rank}" if int(rank) > room else ""

    def agentvision_expect_adapter(self, adapter: str) -> str:
        """The next update brings an adapter; why that cannot be, or nothing."""
        if problem := self.agentvision_adapter_problem(str(json.loads(adapter)["rank"])):
            return problem
        manager = self.model_runner.lora_manager
        load = manager._load_adapter
        if not hasattr(load, "from_memory"):

            def from_memory_or_disk(asked: LoRARequest) -> LoRAModel:
                return HELD.model(asked.lora_int_id, manager) if asked.lora_path == PATH else load(asked)

            from_memory_or_disk.from_memory = True  # type: ignore[attr-defined]
            manager._load_adapter = from_memory_or_disk
        HELD.expected = json.loads(adapter)
        return ""
