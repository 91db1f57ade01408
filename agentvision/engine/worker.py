"""What runs inside vLLM's workers: a receiver of weights, and what a trainer may ask about them afterwards.

vLLM finds both by name. `register` is called in each of its processes (entry point `vllm.general_plugins`) and makes the
weight-transfer backend "agentvision" known; `WeightReader` is the worker's extension (`worker_extension_cls`), whose methods
answer `collective_rpc`. Tensors come through shared memory, or by reference when the engine runs in the trainer's process.
Each bucket's digests are taken from the very tensors that are handed to the model, and kept until the next update.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import torch
from torch import Tensor

from agentvision.engine.digest import rows_digest

BACKEND = "agentvision"


def register() -> None:
    """Make the backend known to vLLM; called by its plug-in system in every process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "agentvision.engine.receiver", "WeightReceiver")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a bucket."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return getattr(torch, self.dtype).itemsize * _product(self.shape)


RECEIVED: dict[str, int] = {}
"""The digest of every tensor of the last update, by its name. A worker is a process, and has one model."""


def tensors_of(memory: str, places: Sequence[Mapping[str, Any]]) -> list[tuple[str, Tensor]]:
    """Copies of the tensors of a bucket in shared memory. Raises `FileNotFoundError` when there is no such memory."""
    shared = SharedMemory(memory)
    # The sender owns the memory; a tracker of this process would take it away when the process ends.
    resource_tracker.unregister(shared._name, "shared_memory")  # type: ignore[attr-defined]
    try:
        found = [Place(p["name"], p["dtype"], tuple(p["shape"]), p["offset"]) for p in places]
        return [(place.name, _read(shared, place)) for place in found]
    finally:
        shared.close()


def _read(shared: SharedMemory, place: Place) -> Tensor:
    buffer: Any = shared.buf
    raw = torch.frombuffer(bytearray(buffer[place.offset : place.offset + place.bytes]), dtype=torch.uint8)
    return raw.view(getattr(torch, place.dtype)).reshape(place.shape)


def _product(shape: Sequence[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


class WeightReader:
    """Methods that vLLM adds to its worker. All answer JSON, because that is what travels over HTTP."""

    model_runner: Any

    def agentvision_received(self) -> str:
        """The digests of the last update's tensors, as they were handed to the model: `{name: digest}`."""
        return json.dumps(RECEIVED)

    def agentvision_loaded(self) -> str:
        """`rows_digest` of the parameters that the model computes with now."""
        seen = {p.data_ptr(): p for p in self.model_runner.get_model().parameters()}
        return str(rows_digest(seen.values()))

    def agentvision_cached(self) -> str:
        """How many images' features are kept."""
        return str(len(getattr(self.model_runner, "encoder_cache", ())))
