"""How a bucket of tensors gets to an engine's workers: by reference, in shared memory, or over the network (`lend`).

A `Carrier` is the sender's side. What it hands out while the bucket is carried is what `Control.update_weights` passes on, and
`taken` is the worker's side of it. Neither knows what the tensors mean. In memory and on the wire a bucket is the tensors' own
bytes one after another, each at a multiple of 64, and its `places` say where.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from agentvision.engine.memory import new_memory
from agentvision.engine.types import EngineError

Bucket: TypeAlias = Sequence[tuple[str, Tensor]]
"""Names and tensors: of any type, shape, strides and device."""

ALIGN = 64
"""Bytes: each tensor of a bucket begins at a multiple."""
_SHARED = Path("/dev/shm")
"""Where shared memory has names. Where there is no such folder no worker sees any, and the network carries."""


class Carrier(Protocol):
    """The sender's side of one way."""

    def carry(self, bucket: Bucket) -> AbstractContextManager[Mapping[str, Any]]:
        """What the workers are told; they have to take the bucket before the block ends. Entering it may take a while."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a bucket. `dtype` is torch's name of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Place:
        return cls(told["name"], told["dtype"], tuple(told["shape"]), told["offset"])

    @property
    def type(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def bytes(self) -> int:
        return self.type.itemsize * prod(self.shape)


def laid_out(bucket: Bucket) -> tuple[list[Place], int]:
    """Where the tensors lie, and the bytes of all with what lies between them."""
    places: list[Place] = []
    end = 0
    for name, tensor in bucket:
        places.append(Place(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), end))
        end += -(-tensor.nbytes // ALIGN) * ALIGN
    return places, end


def told(places: Iterable[Place]) -> list[dict[str, Any]]:
    """As JSON."""
    return [asdict(place) for place in places]


def bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's bytes (n,) in row-major order: its own memory where that is so already, on its device."""
    whole = tensor.detach().contiguous()
    # A tensor of one element or none may have any strides, and counts as contiguous.
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8)


def tensors_in(memory: Tensor, places: Iterable[Mapping[str, Any]]) -> list[tuple[str, Tensor]]:
    """The tensors of a bucket: views of the bytes (n,) that it came as."""
    found = [Place.of(place) for place in places]
    if any(place.offset + place.bytes > memory.numel() for place in found):
        raise EngineError(f"a bucket of {memory.numel()} bytes is shorter than the tensors that it is said to hold")
    return [
        (place.name, memory[place.offset : place.offset + place.bytes].view(place.type).reshape(place.shape))
        for place in found
    ]


# --- by reference -----------------------------------------------------------------------------------------------------


class ByReference:
    """For an engine in this process: the tensors themselves."""

    def carry(self, bucket: Bucket) -> AbstractContextManager[Mapping[str, Any]]:
        return nullcontext({"tensors": bucket})


# --- shared memory ----------------------------------------------------------------------------------------------------


class BySharedMemory:
    """For workers that see this machine's shared memory: see `shows` and `sees`."""

    @contextmanager
    def carry(self, bucket: Bucket) -> Iterator[Mapping[str, Any]]:
        places, end = laid_out(bucket)
        with new_memory(end) as memory:
            whole = torch.frombuffer(memory.buf, dtype=torch.uint8)
            try:
                for place, (_, tensor) in zip(places, bucket, strict=True):
                    whole[place.offset : place.offset + place.bytes].copy_(bytes_of(tensor))
            finally:
                del whole  # it holds the buffer, which could not be closed
            yield {"memory": memory.name, "places": told(places)}


@contextmanager
def shows(nonce: bytes) -> Iterator[str]:
    """The name of shared memory that holds `nonce`: a worker that `sees` it can be handed tensors so."""
    with new_memory(len(nonce)) as memory:
        buffer: Any = memory.buf
        buffer[: len(nonce)] = nonce
        del buffer
        yield memory.name


def sees(memory: str, nonce: bytes) -> bool:
    """Whether shared memory of that name is here, and begins with `nonce`: another container may have one of its name."""
    try:
        return (_SHARED / memory).read_bytes()[: len(nonce)] == nonce
    except OSError:
        return False


def mapped(memory: str) -> Tensor:
    """Shared memory as bytes (n,), without a copy of it; it lives on, though its name is gone, while anything is made of it.

    Raises `FileNotFoundError` when there is none of that name.
    """
    with (_SHARED / memory).open("rb") as file:
        # A private mapping: nothing written to a tensor gets out.
        return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)


# --- the worker's side ------------------------------------------------------------------------------------------------


def taken(info: Mapping[str, Any], fetched: Callable[[Mapping[str, Any]], Tensor]) -> Bucket:
    """The tensors of a bucket, from what the workers were told; `fetched` brings the bytes of one that is lent."""
    if (tensors := info.get("tensors")) is not None:
        return tensors
    if (lent := info.get("lent")) is not None:
        return tensors_in(fetched(lent), info["places"])
    return tensors_in(mapped(info["memory"]), info["places"])
