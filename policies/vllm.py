"""A policy that samples with vLLM: exact ids and log-probs from an engine with weights of its own, so it can be trained.

`placement` says where the engine is: `colocate` in this process, on the trainer's device; `separate` in servers that are
started here, on devices of their own; `server` at addresses that are given. All three take the ledger's ids, and an image
once by its hash. The trainer changes `model`; `weights_changed` brings the engine to it and returns when that is proven.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from agentvision.chat.network import on_network
from agentvision.engine.endpoint import Endpoint
from agentvision.engine.in_process import InProcessEngine
from agentvision.engine.launch import ServerPlan, Servers
from agentvision.engine.lend import Network
from agentvision.engine.part import FIRST_VERSION
from agentvision.engine.pictures import Pictures
from agentvision.engine.pool import PATIENCE_S, Pool
from agentvision.engine.probe import Probe
from agentvision.engine.proof import Proof
from agentvision.engine.ranks import in_thread, raise_any, rank, ranks, told_by_all, told_by_first
from agentvision.engine.settings import EngineSettings, stored_dtype
from agentvision.engine.sync import Sync, Weights, is_sharded, parameters_of
from agentvision.engine.types import Ask, Control, Engine, EngineError, EngineLost, SyncError
from agentvision.errors import PluginError, first_line
from agentvision.policies._adapter import Sending, adapter_refusal, refused, sends_adapter
from agentvision.policies._model import Attention, load_model
from agentvision.policies._vllm_engines import Agreement, alone, of_all, own_engine, started_servers
from agentvision.policies._vllm_settings import Placement, Where, problems
from agentvision.policy import Completion, Request
from agentvision.recipe.lora import Lora
from agentvision.seeds import seed_for
from agentvision.tokens import Codec

_log = logging.getLogger(__name__)

_TRIES = 2
"""A sync that fails is tried once more; a fault that stays stops the run."""


class VLLMPolicy:
    """Turns sampled by an `Engine`. `model` is the trainer's module, loaded when it is first asked for.

    `samples_dtype` is the engine's type of weights, where it is not the model's. `servers` were started for this policy
    and end with it. `source` is the folder or hub id that it was made from. `adapter` is to be brought in place of weights; at
    servers that take none, `lora` says what then.
    """

    trainable = True
    samples_from_copy = True
    """Always: the engine has weights of its own."""

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        *,
        load: Callable[[], nn.Module] | None = None,
        samples_dtype: torch.dtype | None = None,
        servers: Servers | None = None,
        weights_host: str | None = None,
        adapter: Lora | None = None,
        lora: Sending = "auto",
        source: str | None = None,
    ) -> None:
        self.engine = engine
        self._source = source
        self._whose_is_known = False
        """Whose weights the servers have: they were brought, or it was said that they are others."""
        self.codec: Codec | None = codec
        self.vision_frozen = False
        self.syncs_failed = 0
        """Syncs whose proof did not hold, and that were made again."""
        self._codec = codec
        self._load = load
        self._model: nn.Module | None = None
        self._samples_dtype = samples_dtype
        self._servers = servers
        self.proof = Proof(Probe.of(codec), lambda: samples_dtype or next(self.model.parameters()).dtype)
        self._sync = Sync(same_process=isinstance(engine, InProcessEngine), network=Network(weights_host))
        self._version = 0
        self._current: Weights | None = None
        self._adapter_rank = None if adapter is None else adapter.rank
        self._lora: Sending = lora
        self._with_adapter = False
        """Turns are asked of the adapter that was brought."""
        self._syncing = asyncio.Lock()
        if isinstance(engine, Pool):
            engine.admit = self._admit

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        placement: Placement = "colocate",
        endpoints: Sequence[str] = (),
        dtype: str = "auto",
        device: str = "auto",
        attn: Attention = "auto",
        revision: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
        context_tokens: Annotated[int, Field(ge=1)] = 8192,
        max_rows: Annotated[int, Field(ge=1)] = 256,
        max_images: Annotated[int, Field(ge=1)] = 16,
        compute_dtype: Literal["bfloat16", "float16", "float32"] | None = None,
        memory_share: Annotated[float, Field(gt=0, le=1)] = 0.5,
        kv_cache_mib: Annotated[int, Field(ge=1)] | None = None,
        sleep: bool = True,
        servers: Annotated[int, Field(ge=1)] = 1,
        devices: Sequence[str] = (),
        api_key_env: str | None = None,
        weights_host: str | None = None,
        adapter: Lora | None = None,
        lora: Sending = "auto",
        engine: Mapping[str, Any] | None = None,
        logs: Path | None = None,
    ) -> VLLMPolicy:
        """What a recipe may set. `engine` are further arguments of vLLM's own, by its names (`tensor_parallel_size: 2`).

        `compute_dtype` is the engine's type of weights; `memory_share` its share of a GPU and `kv_cache_mib` the memory of
        keys and values (a CPU needs one: 256 by default). `sleep`: a colocated engine on a GPU gives its memory up while
        the trainer updates. `servers` and `devices` ("0,1" for each) are for `separate`. `api_key_env` names the
        environment variable that holds the servers' key. `weights_host` is for `server`: HOST or HOST:PORT where servers on
        other machines fetch new weights from this one; by default its own address on the way to them. `adapter` is put into the
        model, to be trained, and `lora` says how it gets to the engine. `logs` is the folder of what servers that are started
        say (a training run's `servers/`; else they are gone with the policy). Raises `ModelError` and `PluginError`.
        """
        cls.check(
            placement=placement,
            endpoints=endpoints,
            device=device,
            servers=servers,
            devices=devices,
            api_key_env=api_key_env,
            weights_host=weights_host,
            engine=engine,
            adapter=adapter,
            lora=lora,
        )
        codec = Codec.from_pretrained(
            path,
            revision=revision,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            trust_remote_code=trust_remote_code,
        )
        if context_tokens < (least := Probe.of(codec).tokens):
            raise PluginError(
                f"sampling.context_tokens is {context_tokens}, and policy.backend 'vllm' needs {least}: new weights are proven "
                "by a turn of that length"
            )
        sent = adapter if sends_adapter(adapter, lora) else None
        if (engine_dtype := compute_dtype or dtype) == "auto":
            engine_dtype = stored_dtype(path, revision=revision, trust_remote_code=trust_remote_code)
        settings = EngineSettings(
            path=str(path),
            revision=revision,
            dtype=engine_dtype,
            device=device,
            context_tokens=context_tokens,
            max_rows=max_rows,
            max_images=max_images,
            memory_share=memory_share,
            kv_cache_bytes=None if kv_cache_mib is None else kv_cache_mib << 20,
            trust_remote_code=trust_remote_code,
            pixels=(codec.vision.min_pixels, codec.vision.max_pixels) if min_pixels or max_pixels else None,
            sleeps=sleep,
            adapter_rank=None if sent is None else sent.rank,
            more=engine or {},
        )
        started: Servers | None = None
        made: Engine
        if placement == "colocate":
            made = own_engine(settings, codec)
        else:
            if placement == "separate":
                started, endpoints = started_servers(settings, servers, devices, logs)
            pictures = Pictures(codec.vision)  # an image is encoded once for all servers
            made = Pool(
                [_endpoint(url, codec, api_key_env, pictures) for url in endpoints],
                patience_s=ServerPlan.start_s if placement == "separate" else PATIENCE_S,  # it may be started again
                follows=rank() > 0,
            )

        def load() -> nn.Module:
            return load_model(
                path,
                dtype=dtype,
                device=device,
                attn=attn,
                revision=revision,
                trust_remote_code=trust_remote_code,
                adapter=adapter,
            )

        kept = getattr(torch, compute_dtype) if compute_dtype else None
        return cls(
            made,
            codec,
            load=load,
            samples_dtype=kept,
            servers=started,
            weights_host=weights_host,
            adapter=sent,
            lora=lora,
            source=str(path),
        )

    @classmethod
    def check(
        cls,
        *,
        placement: Placement = "colocate",
        endpoints: Sequence[str] = (),
        device: str = "auto",
        servers: int = 1,
        devices: Sequence[str] = (),
        api_key_env: str | None = None,
        weights_host: str | None = None,
        engine: Mapping[str, Any] | None = None,
        adapter: Lora | None = None,
        lora: Sending = "auto",
        **_: Any,
    ) -> None:
        """Raise `PluginError` for settings that cannot be, a line each; nothing is loaded or asked. Others are left to their own
        checks."""
        where = Where(placement, endpoints, device, servers, devices, api_key_env, weights_host, engine or {})
        found = [*problems(where), *filter(None, [adapter_refusal(adapter, lora)])]
        if told := "\n".join(found):
            raise PluginError(told)

    @property
    def model(self) -> nn.Module:
        """The trainer's module; the engine has a copy of its own."""
        if self._model is None:
            if self._load is None:
                raise PluginError("this policy was made without a module to train")
            self._model = self._load()
        return self._model

    @property
    def version(self) -> int:
        """Of the weights that the engine was last proven to have."""
        return self._version

    async def complete(self, request: Request) -> Completion:
        """Sample one turn. Raises `ValueError` for an impossible request, `EngineError` when the engine cannot."""
        sampling = request.sampling
        sampled = await self.engine.sample(
            Ask(
                session=request.session,
                group=request.group,
                turn=request.turn,
                segments=request.segments,
                store=request.store,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=seed_for(sampling.seed, request.turn),
                stop_ids=self._codec.stop_ids,
                banned_ids=self._codec.banned_ids,
                adapter=self._with_adapter,
            )
        )
        if not self._whose_is_known:
            self._say_whose()
        reused = sampled.cached_tokens
        return Completion(
            text=self._codec.decode(sampled.ids),
            ids=sampled.ids,
            logprobs=sampled.logprobs,
            ended=sampled.ids[-1] in self._codec.stop_ids,
            versions=sampled.versions,
            usage={
                "prompt_tokens": sampled.prompt_tokens,
                "prefilled_tokens": sampled.prompt_tokens - reused,
                "reused_tokens": reused,
            },
        )

    def _say_whose(self) -> None:
        """Warn, once, where servers have other weights than this policy's, and nobody brings it any."""
        self._whose_is_known = True
        if not isinstance(self.engine, Pool) or self._source is None:
            return
        for endpoint in self.engine.controls():
            if endpoint.weights not in (None, FIRST_VERSION):
                what = f"has the weights that a training run brought it (version {endpoint.weights})"
            elif endpoint.info is not None and Path(endpoint.info.source).name != Path(self._source).name:
                what = f"was started with {endpoint.info.source!r}"
            else:
                continue
            _log.warning("%s %s: what it says is theirs, and not that of %r", endpoint.url, what, self._source)

    async def release(self, session: str) -> None:
        await self.engine.release(session)

    async def rest(self) -> None:
        """No turn is asked for before the next `weights_changed`: a colocated engine gives its memory to the trainer."""
        if isinstance(self.engine, InProcessEngine):
            await self.engine.sleep()

    async def weights_changed(self, version: int) -> None:
        """Bring the engine to the module's weights. Raises `SyncError` when that cannot be proven, and keeps the version.

        Of several servers one must succeed; the others get no turns until they have these weights too. Of several ranks'
        engines all must: what fails on one is raised on all.
        """
        if isinstance(self.engine, Pool):
            await self._to_servers(version, self.engine)
        else:
            weights = await self._weights(version, copy=False)
            for control in self.engine.controls():
                await self._send(weights, control, self.model, agreed=of_all)
        self._version, self._with_adapter = version, self._adapter_rank is not None
        self._whose_is_known = True

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
        if self._adapter_rank is not None and not self._with_adapter:
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
        elif is_sharded(self.model):
            for _ in parameters_of(self.model, None, adapter=self._adapter_rank is not None):
                """Only so that the first rank, which sends them, gets them whole."""
        await in_thread(lambda: raise_any(error))
        if not first:
            await pool.expect(version)

    async def _weights(self, version: int, *, copy: bool) -> Weights:
        """Servers may need the weights again later, when the trainer has moved on: theirs are a copy."""

        def make() -> Weights:
            adapter = self._adapter_rank is not None
            return Weights.of(self.model, version=version, dtype=self._samples_dtype, copy=copy, adapter=adapter)

        return make() if is_sharded(self.model) else await in_thread(make)

    async def _bring(self, pool: Pool, weights: Weights) -> None:
        """All servers that serve; on the network's loop, where those that come back are brought to them too."""
        await pool.ready()
        async with self._syncing:
            controls = pool.controls()
            sends = (self._send(weights, control, self.model) for control in controls)
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
            self.syncs_failed += 1
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
            await self._sync.send(replace(weights, stream=lambda: tensors), control, probe)
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

    async def close(self) -> None:
        """End the engine, and the servers that were started for it."""
        try:
            await self.engine.close()
        finally:
            if self._servers is not None:
                await self._servers.close()


def _endpoint(url: str, codec: Codec, api_key_env: str | None, pictures: Pictures) -> Endpoint:
    return Endpoint(url, codec=codec, pictures=pictures, api_key=os.environ[api_key_env] if api_key_env else None)
