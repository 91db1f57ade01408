"""What a recipe may set for vLLM, and what is wrong with it: told before anything is loaded or started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import httpx
import torch

from agentvision.engine.lend import address_of
from agentvision.engine.ranks import ranks

Placement: TypeAlias = Literal["colocate", "separate", "server"]

_OURS = {
    "model": "model.path",
    "revision": "model.revision",
    "dtype": "policy.options.compute_dtype",
    "max_model_len": "sampling.context_tokens",
    "max_num_seqs": "policy.max_rows",
    "gpu_memory_utilization": "policy.options.memory_share",
    "kv_cache_memory_bytes": "policy.options.kv_cache_mib",
    "enable_sleep_mode": "policy.options.sleep",
    "trust_remote_code": "model.trust_remote_code",
    "enable_lora": "model.lora and policy.options.lora",
    "max_lora_rank": "model.lora.rank",
}
"""Arguments of vLLM's that the recipe has a key of its own for."""
_NEEDED = (
    "generation_config", "logprobs_mode", "mm_device_do_normalize", "mm_processor_cache_gb", "mm_processor_kwargs",
    "weight_transfer_config", "worker_extension_cls",
)  # fmt: skip
"""Arguments of vLLM's without which its ids, log-probs or weights would not be exact."""
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def problems(
    placement: Placement,
    endpoints: Sequence[str],
    device: str,
    servers: int,
    devices: Sequence[str],
    api_key_env: str | None,
    weights_host: str | None,
    engine: Mapping[str, Any],
) -> Iterator[str]:
    """Everything that cannot be, a sentence each."""
    engine = {name.replace("-", "_"): value for name, value in engine.items()}  # servers take a flag's dashes too
    if placement == "server" and not endpoints:
        yield "policy.placement 'server' needs policy.endpoints: the addresses of the vLLM servers"
    if placement != "server" and endpoints:
        yield f"policy.endpoints belongs to policy.placement 'server', and the placement is {placement!r}"
    for index, url in enumerate(endpoints):
        where = f"policy.endpoints.{index}"
        try:
            address = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            yield f"{where}: {url!r} is no address; write http://host:8000"
            continue
        if address.userinfo:
            yield f"{where}: an address holds a password; name the key's variable in policy.options.api_key_env"
        if address.scheme not in ("http", "https", "unix"):
            yield f"{where}: {url!r} is no address; write http://host:8000"
    if weights_host is not None:
        if placement != "server":
            yield f"policy.options.weights_host belongs to policy.placement 'server', and the placement is {placement!r}"
        try:
            address_of(weights_host)
        except ValueError:
            yield (
                f"policy.options.weights_host: {weights_host!r} is no address; write HOST or HOST:PORT, where the servers "
                "reach this machine"
            )
    sizes: dict[str, int] = {}
    for name in _PARALLEL:
        size = engine.get(name, 1)
        if isinstance(size, int) and size >= 1:
            sizes[name] = size
        else:
            yield f"policy.options.engine.{name} is {size!r}; take a whole number from 1 on, or leave it out"
    if placement == "colocate" and ranks() > 1:
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if sizes.get(name, 1) > 1:
                yield (
                    f"policy.options.engine.{name}={engine[name]!r} cannot be: there are {ranks()} training processes, and with "
                    "policy.placement 'colocate' each has an engine of its own, on its own device; leave it out, or take "
                    "'separate' (servers on GPUs of their own)"
                )
    if device != "cpu" and device != "auto" and not torch.cuda.is_available():
        yield f"model.device is {device!r}, and torch sees no GPU here; take 'auto' or 'cpu'"
    if placement != "separate":
        for name, given in (("servers", servers > 1), ("devices", devices)):
            if given:
                yield f"policy.options.{name} belongs to policy.placement 'separate', and the placement is {placement!r}"
    elif devices and len(devices) != servers:
        yield (
            f"policy.options.servers is {servers} and policy.options.devices is for {len(devices)}: {list(devices)!r}; "
            'name each server\'s, as in ["0,1", "2,3"]'
        )
    if api_key_env is not None and not os.environ.get(api_key_env):
        yield f"policy.options.api_key_env names {api_key_env!r}, and that environment variable is not set"
    if sizes.get("data_parallel_size", 1) > 1:
        yield (
            "policy.options.engine.data_parallel_size cannot be: vLLM answers for the first of its replicas alone, so new "
            "weights could not be proven in the others; take policy.placement 'separate' and policy.options.servers"
        )
    for name in engine:
        if name in _OURS:
            yield f"policy.options.engine.{name}: set {_OURS[name]} instead"
        if name in _NEEDED:
            yield f"policy.options.engine.{name} cannot be set: exact ids, log-probs and weights depend on it"
