"""How an engine gets the weights of the module that is trained: to one in this process, or to servers; proven, or an error.

Each try is a `Sync` with its proof, and one that fails is made once more. Servers that were away when the others took weights
are brought them when they come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from agentvision.chat.network import on_network
from agentvision.engine.endpoint import Endpoint
from agentvision.engine.in_process import InProcessEngine
from agentvision.engine.lend import Network
from agentvision.engine.pool import Pool
from agentvision.engine.proof import Proof
from agentvision.engine.ranks import in_thread, raise_any, rank, ranks, told_by_all, told_by_first
from agentvision.engine.sync import Sync, Weights, is_sharded, parameters_of
from agentvision.engine.types import Control, Engine, EngineError, EngineLost, SyncError
from agentvision.errors import first_line
from agentvision.policies._adapter import Sending, refused
from agentvision.policies._vllm_engines import Agreement, alone, of_all
from agentvision.recipe.lora import Lora

_log = logging.getLogger(__name__)

_TRIES = 2
"""A sync that fails is tried once more; a fault that stays stops the run."""


class Delivery:
    """To the engine (or the servers) of one policy. `module` is asked for when it is needed.

    `dtype` is the engine's type of weights, where it is not the module's. `adapter` is brought in place of weights; at
    servers that take none, `lora` says what then.
    """

    def __init__(
        self,
        engine: Engine,
        module: Callable[[], nn.Module],
        *,
        proof: Proof,
        dtype: torch.dtype | None,
        network: Network,
        adapter: Lora | None,
        lora: Sending,
    ) -> None:
        self.failed = 0
        """Syncs whose proof did not hold, and that were made again."""
        self.with_adapter = False
        """Turns are to be asked of the adapter that was brought."""
        self.proof = proof
        self.sync = Sync(same_process=isinstance(engine, InProcessEngine), network=network)
        self._engine = engine
        self._module = module
        self._dtype = dtype
        self._adapter_rank = None if adapter is None else adapter.rank
        self._lora: Sending = lora
        self._current: Weights | None = None
        self._syncing = asyncio.Lock()
        if isinstance(engine, Pool):
            engine.admit = self._admit

    async def bring(self, version: int) -> None:
        """The module's weights, as `version`. Raises `SyncError` when it cannot be proven that they are there.

        Of several servers one must succeed; the others get no turns until they have these weights too. Of several ranks'
        engines all must: what fails on one is raised on all.
        """
        if isinstance(self._engine, Pool):
            await self._to_servers(version, self._engine)
        else:
            weights = await self._weights(version, copy=False)
            for control in self._engine.controls():
                await self._send(weights, control, self._module(), agreed=of_all)
        self.with_adapter = self._adapter_rank is not None

    async def ready(self) -> None:
        """Raises `EngineError`, on all ranks, where the first of them finds no server that can be asked."""
        error: EngineError | None = None
        if isinstance(self._engine, Pool) and rank() == 0:
            try:
                await self._engine.ready()
            except EngineError as raised:
                error = raised
        await in_thread(lambda: raise_any(error))

    async def _ask_servers(self, pool: Pool, adapter_rank: int) -> None:
        """Before the first sync: whether they take an adapter, or it is to be merged."""
        merges = False
        error: EngineError | None = None
        if rank() == 0:
            try:
                merges = await on_network(self._refused(pool, adapter_rank))
            except EngineError as raised:
                error = raised
        await in_thread(lambda: raise_any(error))
        if await in_thread(lambda: told_by_first(merges)):
            self._adapter_rank = None

    async def _refused(self, pool: Pool, adapter_rank: int) -> bool:
        await pool.ready()
        return await refused(pool.controls(), adapter_rank, self._lora)

    async def _to_servers(self, version: int, pool: Pool) -> None:
        """The first rank brings the weights; the others ask no turns until they hear of it."""
        if self._adapter_rank is not None and not self.with_adapter:
            await self._ask_servers(pool, self._adapter_rank)
        first = rank() == 0
        error: EngineError | None = None
        if not first:
            await pool.hold()
        if ranks() > 1:
            await in_thread(lambda: told_by_all(None))  # all hold
        if first:
            try:
                weights = await self._weights(version, copy=True)
                await on_network(self._bring(pool, weights))
            except EngineError as raised:
                error = raised
        elif is_sharded(self._module()):
            for _ in parameters_of(self._module(), None, adapter=self._adapter_rank is not None):
                """Only so that the first rank, which sends them, gets them whole."""
        await in_thread(lambda: raise_any(error))
        if not first:
            await pool.expect(version)

    async def _weights(self, version: int, *, copy: bool) -> Weights:
        """Servers may need the weights again later, when the trainer has moved on: theirs are a copy."""

        def make() -> Weights:
            adapter = self._adapter_rank is not None
            return Weights.of(self._module(), version=version, dtype=self._dtype, copy=copy, adapter=adapter)

        return make() if is_sharded(self._module()) else await in_thread(make)

    async def _bring(self, pool: Pool, weights: Weights) -> None:
        """All servers that serve; on the network's loop, where those that come back are brought to them too."""
        await pool.ready()
        async with self._syncing:
            controls = pool.controls()
            sends = (self._send(weights, control, self._module()) for control in controls)
            results = await asyncio.gather(*sends, return_exceptions=True)
            errors = [result for result in results if isinstance(result, BaseException)]
            for control, result in zip(controls, results, strict=True):
                if isinstance(result, BaseException):
                    control.distrust()
                    _log.warning("%s has not got version %d: %s", control.url, weights.version, first_line(result))
            if not controls:
                raise SyncError(f"version {weights.version}: there is no server to bring it to")
            bugs = [error for error in errors if not isinstance(error, EngineError)]
            if bugs or len(errors) == len(controls):
                raise (bugs or errors)[0]
            self._current = weights

    async def _send(
        self, weights: Weights, control: Control, model: nn.Module | None = None, *, agreed: Agreement = alone
    ) -> None:
        """Sync one engine; with the module that the weights are of, what it computes is compared too.

        A try counts when `agreed`, which is told what became of it, has no errors: several ranks try together.
        """
        for left in reversed(range(_TRIES)):
            error = await self._try(weights, control, model)
            errors = await agreed(error)
            if not errors:
                return
            self.failed += 1
            _log.warning("A sync of weights failed%s: %s", "" if left else " again", first_line(errors[0]))
            if not left or not all(isinstance(e, SyncError) for e in errors):
                if not isinstance(error, EngineLost):
                    with suppress(EngineError):
                        await control.pause()  # nothing is sampled from weights that nobody knows
                raise error or errors[0]

    async def _try(self, weights: Weights, control: Control, model: nn.Module | None) -> EngineError | None:
        tensors = weights.stream()
        try:
            probe = partial(self.proof.check, weights, control, model)
            await self.sync.send(replace(weights, stream=lambda: tensors), control, probe)
        except EngineError as error:
            return error
        finally:
            if model is not None and is_sharded(model):
                for _ in tensors:
                    """All ranks together gather them: whatever became of this one's try, the others wait for its part."""
        return None

    async def _admit(self, endpoint: Endpoint) -> None:
        """A server that comes back gets the weights that the others have."""
        async with self._syncing:
            current = self._current
            if current is not None and endpoint.weights != str(current.version):  # not brought while this one waited
                await self._send(current, endpoint)
