"""A policy that samples with vLLM: exact ids and log-probs from an engine with weights of its own, so it can be trained.

`placement` says where the engine is: `colocate` in this process, on the trainer's device; `separate` in servers that are
started here, on devices of their own; `server` at addresses that are given. All three take the ledger's ids, and an image
once by its hash. The trainer changes `model`; `weights_changed` brings the engine to it and returns when that is proven.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from agentvision.engine.endpoint import Endpoint
from agentvision.engine.in_process import InProcessEngine
from agentvision.engine.launch import ServerPlan, Servers
from agentvision.engine.lend import Network
from agentvision.engine.part import FIRST_VERSION
from agentvision.engine.pictures import Pictures
from agentvision.engine.pool import PATIENCE_S, Pool
from agentvision.engine.probe import Probe
from agentvision.engine.proof import Proof
from agentvision.engine.ranks import rank
from agentvision.engine.settings import EngineSettings, stored_dtype
from agentvision.engine.types import Ask, Engine
from agentvision.errors import PluginError
from agentvision.policies._adapter import Sending, adapter_refusal, sends_adapter
from agentvision.policies._model import Attention, load_model
from agentvision.policies._vllm_delivery import Delivery
from agentvision.policies._vllm_engines import own_engine, started_servers
from agentvision.policies._vllm_settings import Placement, Where, problems
from agentvision.policy import Completion, Request
from agentvision.recipe.lora import Lora
from agentvision.run_folder import EXPORT
from agentvision.seeds import seed_for
from agentvision.tokens import Codec

_log = logging.getLogger(__name__)


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
        self._codec = codec
        self._load = load
        self._model: nn.Module | None = None
        self._servers = servers
        self.proof = Proof(Probe.of(codec), lambda: samples_dtype or next(self.model.parameters()).dtype)
        self.delivery = Delivery(
            engine,
            lambda: self.model,
            proof=self.proof,
            dtype=samples_dtype,
            network=Network(weights_host),
            adapter=adapter,
            lora=lora,
        )
        self._version = 0

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
    def syncs_failed(self) -> int:
        """Syncs whose proof did not hold, and that were made again."""
        return self.delivery.failed

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
                adapter=self.delivery.with_adapter,
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
            elif endpoint.info is not None and _differ(endpoint.info.source, self._source):
                what = f"was started with {endpoint.info.source!r}"
            else:
                continue
            _log.warning("%s %s: what it says is theirs, and not that of %r", endpoint.url, what, self._source)

    async def release(self, session: str) -> None:
        await self.engine.release(session)

    async def ready(self) -> None:
        """Wait for the servers, as a first turn would. Raises `EngineError`, on all ranks, where none can be asked."""
        await self.delivery.ready()

    async def rest(self) -> None:
        """No turn is asked for before the next `weights_changed`: a colocated engine gives its memory to the trainer."""
        if isinstance(self.engine, InProcessEngine):
            await self.engine.sleep()

    async def weights_changed(self, version: int) -> None:
        """Bring the engine to the module's weights. Raises `SyncError` when that cannot be proven, and keeps the version.

        Of several servers one must succeed, of several ranks' engines all.
        """
        await self.delivery.bring(version)
        self._version = version
        self._whose_is_known = True

    async def close(self) -> None:
        """End the engine, and the servers that were started for it."""
        try:
            await self.engine.close()
        finally:
            if self._servers is not None:
                await self._servers.close()


def _endpoint(url: str, codec: Codec, api_key_env: str | None, pictures: Pictures) -> Endpoint:
    return Endpoint(url, codec=codec, pictures=pictures, api_key=os.environ[api_key_env] if api_key_env else None)


def _differ(one: str, other: str) -> bool:
    """Whether two paths, perhaps on two machines, name different models: a run's by the run's name too."""
    telling = {EXPORT: 2, "model": 4}.get(Path(one).name, 1)  # RUN/export, RUN/checkpoints/STEP/model
    parts = Path(one).parts, Path(other).parts
    telling = min(telling, *map(len, parts))
    return parts[0][-telling:] != parts[1][-telling:]
