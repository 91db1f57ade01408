"""What a recipe may set for vLLM, and what is wrong with it: told before anything is loaded or started."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import torch

from agentvision.engine.launch import in_this_view
from agentvision.engine.lend import address_of
from agentvision.engine.ranks import ranks
from agentvision.engine.types import EngineError

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
    "enable_scale_out", "generation_config", "logprobs_mode", "mm_device_do_normalize", "mm_processor_cache_gb",
    "mm_processor_kwargs", "weight_transfer_config", "worker_extension_cls",
)  # fmt: skip
"""Arguments of vLLM's without which its ids, log-probs or weights would not be exact."""
_LISTENS = (
    "api_key", "data_parallel_supervisor_port", "grpc_port", "headless", "host", "middleware", "port", "root_path",
    "served_model_name", "ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_ciphers", "ssl_keyfile", "uds",
)  # fmt: skip
"""Flags of how a server that is started here is reached: by this run alone, on a socket of the run's."""
_ADDRESS = "write http://HOST:PORT, or unix:///PATH for a Unix socket"


def in_the_recipes_words(said: str) -> str:
    """What vLLM says of its arguments, by the recipe's keys: `--max-model-len` is sampling.context_tokens."""
    for name, key in _OURS.items():
        if "_" in name:
            said = re.sub(rf"`?(--)?\b{name.replace('_', '[-_]')}\b`?", key, said)
    memory = "policy.options.kv_cache_mib"
    return f"{said} ({memory} is the memory of keys and values)" if "KV cache" in said and memory not in said else said


@dataclass(frozen=True, slots=True)
class Where:
    """Where the engine is and how it is reached, as a recipe says it."""

    placement: Placement
    endpoints: Sequence[str]
    device: str
    servers: int
    devices: Sequence[str]
    api_key_env: str | None
    weights_host: str | None
    engine: Mapping[str, Any]


def problems(where: Where) -> Iterator[str]:
    """Everything that cannot be, a sentence each that begins with its key."""
    yield from _elsewhere(where)
    yield from _addresses(where.endpoints)
    if where.weights_host is not None:
        try:
            address_of(where.weights_host)
        except ValueError:
            yield (
                f"policy.options.weights_host: {where.weights_host!r} is no address; write HOST or HOST:PORT, where the servers "
                "reach this machine"
            )
    if where.device != "cpu" and where.device != "auto" and not torch.cuda.is_available():
        yield f"model.device: {where.device!r} cannot be, torch sees no GPU here; take 'auto' or 'cpu'"
    if where.devices and len(where.devices) != where.servers:
        yield (
            f"policy.options.devices: policy.options.servers is {where.servers}, and this is for {len(where.devices)}: "
            f"{list(where.devices)!r}; "
            'name each server\'s, as in ["0,1", "2,3"]'
        )
    for index, given in enumerate(where.devices):
        try:
            in_this_view(given)
        except EngineError as error:
            yield f"policy.options.devices.{index}: {error}"
    if where.placement == "separate" and not where.devices and where.device != "cpu" and torch.cuda.device_count() > 1:
        yield (
            f"policy.options.devices: policy.placement 'separate' needs them where there are several GPUs (here "
            f"{torch.cuda.device_count()}): without them each server would be on the trainer's first; name those of each server, "
            'which the trainer does not use, as in ["2,3", "4,5"]'
        )
    if where.api_key_env is not None and not os.environ.get(where.api_key_env):
        yield f"policy.options.api_key_env: the environment variable {where.api_key_env!r} is not set"
    yield from _arguments(where.placement, where.engine)


def _elsewhere(where: Where) -> Iterator[str]:
    """What would do nothing where the engine is."""
    if where.placement == "server" and not where.endpoints:
        yield "policy.placement: 'server' needs policy.endpoints: the addresses of the vLLM servers"
    for key, is_set, belongs in (
        ("endpoints", bool(where.endpoints), "server"),
        ("options.servers", where.servers != 1, "separate"),
        ("options.devices", bool(where.devices), "separate"),
        ("options.api_key_env", where.api_key_env is not None, "server"),
        ("options.weights_host", where.weights_host is not None, "server"),
    ):
        if is_set and where.placement != belongs:
            yield f"policy.{key}: belongs to policy.placement {belongs!r}, and the placement is {where.placement!r}"
    if where.engine and where.placement == "server":
        yield "policy.options.engine: the servers run already: give them these as flags when you start them"


def _addresses(endpoints: Sequence[str]) -> Iterator[str]:
    seen: dict[tuple[str, str, str], int] = {}
    for index, url in enumerate(endpoints):
        where = f"policy.endpoints.{index}"
        if "@" in url.split("://", 1)[-1].partition("/")[0]:  # before anything else is told of it
            yield f"{where}: an address holds a password; name the key's variable in policy.options.api_key_env"
            continue
        try:
            address = urlsplit(url)
            port = address.port
        except ValueError:  # of a port that is none, or an IPv6 address without its brackets
            yield f"{where}: {url!r} is no address; {_ADDRESS}"
            continue
        is_unix = address.scheme == "unix"
        host = address.path if is_unix and not address.netloc else address.hostname or ""
        if address.scheme not in ("http", "https", "unix") or not host or is_unix != host.startswith("/"):
            yield f"{where}: {url!r} is no address; {_ADDRESS}"
        elif url != url.strip() or address.query or address.fragment:
            yield f"{where}: {url!r} is more than an address; {_ADDRESS}"
        else:
            place = host, str(port or address.scheme), address.path.rstrip("/").removesuffix("/v1")
            first = seen.setdefault(place, index)
            if first != index:
                yield f"{where}: {url!r} is the same server as policy.endpoints.{first}; name each once"


def _arguments(placement: Placement, engine: Mapping[str, Any]) -> Iterator[str]:
    for name, value in engine.items():
        key, plain = f"policy.options.engine.{name}", name.replace("-", "_")
        if plain in _OURS:
            yield f"{key}: set {_OURS[plain]} instead"
        elif plain in _NEEDED:
            yield f"{key}: cannot be set: exact ids, log-probs and weights depend on it"
        elif plain in _LISTENS:
            yield f"{key}: cannot be set: servers that a run starts listen for it alone"
        elif plain.endswith("_parallel_size") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            yield f"{key}: must be a whole number from 1 up, not {value!r}"
        elif plain == "data_parallel_size" and value > 1:
            yield (
                f"{key}: cannot be: vLLM answers for the first of its replicas alone, so new weights could not be proven in "
                "the others; take policy.placement 'separate' and policy.options.servers"
            )
        elif (
            plain in ("tensor_parallel_size", "pipeline_parallel_size")
            and min(value, ranks()) > 1
            and placement == "colocate"
        ):
            yield (
                f"{key}: {value!r} cannot be: there are {ranks()} training processes, and with policy.placement 'colocate' each "
                "has an engine of its own, on its own device; leave it out, or take 'separate' (servers on GPUs of their own)"
            )
