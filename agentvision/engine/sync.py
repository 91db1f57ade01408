"""New weights for an engine: sent in buckets, proven to have arrived, and nothing computed with the old ones left.

One sync of one engine: pause, the buckets, finish, what was received against what was sent, caches, a probe, resume. The proof is
exact: a worker digests each tensor as it is handed to the model, and all names and digests must be those of the sender; where
the engine keeps a checkpoint's rows (found out at the first sync), so must those of the parameters it computes with. An
engine that fails stays paused and its version stays what it was, so nothing is sampled from weights that nobody knows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from agentvision.engine.carry import Bucket, ByReference, BySharedMemory, Carrier, shows
from agentvision.engine.digest import rows_digest, tensor_digest, wrapped
from agentvision.engine.lend import Network
from agentvision.engine.types import Control, SyncError
from agentvision.lora import adapter_shape, adapter_tensors, plain_parameters
from agentvision.shards import is_shard

_log = logging.getLogger(__name__)

BUCKET_BYTES = 256 << 20
_NAMED = 5
"""Tensors named in an error; the rest are counted."""


Tensors: TypeAlias = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of one version, as a checkpoint names them; those that share memory stand once.

    `stream` yields them anew, converted as they come, so that no second copy of all of them is in memory.
    """

    version: int
    stream: Callable[[], Tensors]
    digests: dict[str, int]
    rows: int
    adapter: Mapping[str, Any] | None = None
    """The tensors are an adapter's alone, for the model that the engine was started with; else they are all of a model."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        version: int,
        dtype: torch.dtype | None = None,
        copy: bool = False,
        adapter: bool = False,
    ) -> Weights:
        """The parameters of a module, in the engine's type. Shards (FSDP) are gathered, one tensor at a time.

        With `copy` they are this object's own, in the host's memory; else they change when the module does. `adapter` gives the
        adapter's tensors and no others; without it an adapter is merged into the weights.
        """
        copies: list[tuple[str, Tensor]] = []
        digests: dict[str, int] = {}
        rows = 0
        for name, tensor in parameters_of(model, dtype, adapter=adapter):
            digests[name] = tensor_digest(tensor)
            rows += rows_digest([tensor])
            if copy:
                copies.append((name, torch.empty_like(tensor, device="cpu").copy_(tensor)))
        stream = partial(iter, copies) if copy else partial(parameters_of, model, dtype, adapter=adapter)
        return cls(version, stream, digests, wrapped(rows), adapter_shape(model) if adapter else None)


def parameters_of(model: nn.Module, dtype: torch.dtype | None, *, adapter: bool = False) -> Tensors:
    """Names and whole tensors of a module, tied ones once. Gathering shards is collective: every rank must go through."""
    for name, tensor in adapter_tensors(model) if adapter else plain_parameters(model):
        yield name, tensor if dtype is None else tensor.to(dtype)


def is_sharded(model: nn.Module) -> bool:
    """Whether only all ranks together can compute with it (FSDP)."""
    return any(is_shard(parameter) for parameter in model.parameters())


@dataclass(slots=True)
class Sync:
    """Brings engines to the trainer's weights. `same_process` hands tensors over by reference; else an engine whose workers all
    see this machine's shared memory gets them there, and any other over the network.

    `keeps_rows` says of an engine's workers, by rank, whether their parameters have a checkpoint's rows, from the first sync on.
    """

    same_process: bool = False
    bucket_bytes: int = BUCKET_BYTES
    network: Network = field(default_factory=Network)
    keeps_rows: WeakKeyDictionary[Control, dict[int, bool]] = field(default_factory=WeakKeyDictionary)

    async def send(
        self, weights: Weights, control: Control, probe: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """One engine, from pause to resume. Raises `SyncError` when it has not got exactly these weights.

        `probe` is awaited before the resume: what it samples (`Control.sample_alone`) is the first that these weights say.
        """
        await control.pause()
        await control.call_worker("agentvision_end_update")
        if weights.adapter is not None:
            told = await control.call_worker("agentvision_expect_adapter", adapter=json.dumps(weights.adapter))
            if problem := next((problem for problem in told if problem), None):
                raise SyncError(f"version {weights.version}, an adapter, cannot be brought: {problem}")
        async with self._carrier(control) as carrier:
            await control.start_weight_update()
            for bucket in buckets(weights.stream(), self.bucket_bytes):
                await _carry(bucket, carrier, control)
        await control.finish_weight_update(weights.version)
        await self._prove(weights, control)
        await control.reset_caches()
        await fresh(control)
        if probe is not None:
            await probe()
        await control.resume()

    @asynccontextmanager
    async def _carrier(self, control: Control) -> AsyncIterator[Carrier]:
        if self.same_process:
            yield ByReference()
        elif await all_see(control):
            yield BySharedMemory()
        else:
            async with self.network.lending(await control.trainer_host()) as lending:
                yield lending

    async def _prove(self, weights: Weights, control: Control) -> None:
        for rank, told in enumerate(await control.call_worker("agentvision_problem")):
            if told:
                raise SyncError(f"version {weights.version} did not get to worker {rank}: {told}")
        for rank, told in enumerate(await control.call_worker("agentvision_received")):
            received = {name: int(digest) for name, digest in json.loads(told).items()}
            if received != weights.digests:
                raise SyncError(_difference(weights, received, rank))
        loaded = await control.call_worker("agentvision_loaded") if weights.adapter is None else ()
        keeps_rows = self.keeps_rows.setdefault(control, {})
        for rank, told in enumerate(loaded):
            same = int(told) == weights.rows
            if rank not in keeps_rows and not same:
                _log.info(
                    "The engine packs its weights, or splits them: that they are in use is shown by the probe alone."
                )
            if keeps_rows.setdefault(rank, same) and not same:
                raise SyncError(
                    f"version {weights.version}: worker {rank} received every tensor, but the parameters that it computes with "
                    "are not made of them. Restart the engine; if it happens again, report it with the engine's version"
                )
        said = await control.version()
        if said != str(weights.version):
            raise SyncError(f"the engine says that its weights are version {said!r}, not {weights.version}")


async def adapter_problem(control: Control, rank: int) -> str:
    """Why an engine cannot take an adapter of this rank, or nothing."""
    told = await control.call_worker("agentvision_adapter_problem", rank=str(rank))
    return next((problem for problem in told if problem), "")


async def all_see(control: Control) -> bool:
    """Whether all workers of an engine see this machine's shared memory: asked, because containers may have one each."""
    nonce = secrets.token_bytes(16)
    with shows(nonce) as memory:
        told = await control.call_worker("agentvision_sees", memory=memory, nonce=nonce.hex())
    return all(json.loads(sees) for sees in told)


async def _carry(bucket: Bucket, carrier: Carrier, control: Control) -> None:
    carrying = carrier.carry(bucket)
    entering = asyncio.create_task(asyncio.to_thread(carrying.__enter__))  # copies
    try:
        await control.update_weights(await asyncio.shield(entering))
    finally:
        if not entering.done():  # this was cancelled; the thread goes on, and what it makes is to be removed
            await asyncio.wait({entering})
        if entering.exception() is None:
            carrying.__exit__(None, None, None)


async def fresh(control: Control) -> None:
    """Raises `SyncError` when the engine still has features of images that were computed with other weights."""
    for rank, told in enumerate(await control.call_worker("agentvision_cached")):
        if int(told):
            raise SyncError(
                f"worker {rank} still has the features of {int(told)} images that the old weights computed; "
                "its encoder cache was not reset"
            )


def _difference(weights: Weights, received: dict[str, int], rank: int) -> str:
    missing = [name for name in weights.digests if name not in received]
    unknown = [name for name in received if name not in weights.digests]
    changed = [name for name, digest in weights.digests.items() if received.get(name, digest) != digest]
    told = [
        f"{len(names)} {what}: {', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''}"
        for what, names in (("did not arrive", missing), ("arrived changed", changed), ("were never sent", unknown))
        if names
    ]
    return f"version {weights.version}: the tensors of worker {rank} are not those sent. {'; '.join(told)}"


def buckets(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Tensors in order, as many at a time as fit into `limit` bytes; a larger one is alone."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket
