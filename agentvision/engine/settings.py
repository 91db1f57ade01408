"""How vLLM is set up: the same for an engine in this process and for the servers that a run starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agentvision.engine.adapter import room_for
from agentvision.engine.worker import BACKEND

_PREFILL_TOKENS = 8192
"""Tokens of one step on a CPU."""


def stored_dtype(path: str | Path, *, revision: str | None, trust_remote_code: bool) -> str:
    """What "auto" is to the trainer: the type that a checkpoint names. To vLLM it is half precision where that is float32."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code)
    return "auto" if config.dtype is None else str(config.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How vLLM is set up. `more` are further arguments of its `EngineArgs`, by their own names.

    `kv_cache_bytes` sets the memory for keys and values; None is a share of the device (`memory_share`), on a CPU 256 MiB.
    """

    path: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    context_tokens: int = 8192
    max_rows: int = 256
    max_images: int = 16
    memory_share: float = 0.5
    kv_cache_bytes: int | None = None
    trust_remote_code: bool = False
    pixels: tuple[int, int] | None = None
    """Least and most pixels of an image, where they are not the checkpoint's."""
    sleeps: bool = False
    """Whether the engine gives its memory up while the trainer updates (a GPU that both share)."""
    adapter_rank: int | None = None
    """Rank of the adapter that is brought in place of weights; None: there is none."""
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available())

    @property
    def gpu(self) -> int | None:
        """The number of the GPU of an engine in the trainer's process: the trainer's own. None on a CPU."""
        if self.on_cpu:
            return None
        index = torch.device("cuda" if self.device == "auto" else self.device).index
        return torch.cuda.current_device() if index is None else index

    @property
    def sleep_level(self) -> int:
        """vLLM's: 2 forgets the weights, because new ones come; 1 keeps them, in the host's memory: an adapter comes alone."""
        return 2 if self.adapter_rank is None else 1

    def flags(self) -> dict[str, Any]:
        """What a server is started with, besides what every server of ours needs: the same, as command-line flags."""
        inside = (
            "model",
            "mm_processor_cache_gb",
            "enable_sleep_mode",
            "weight_transfer_config",
            "worker_extension_cls",
        )
        return {name: value for name, value in self.arguments().items() if name not in inside}

    def environment(self) -> dict[str, str]:
        """What vLLM's processes read from their environment."""
        on_cpu = {
            "TORCH_COMPILE_DISABLE": "1",  # compiling takes longer than a small model's whole run
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are not vLLM's to bind
        }
        # So that a server asks for the adapter by its name.
        named = {} if self.adapter_rank is None else {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        common = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        return common | named | (on_cpu if self.on_cpu else {})

    def arguments(self) -> dict[str, Any]:
        """`EngineArgs` as keyword arguments."""
        cpu = {
            "block_size": 32,
            "enforce_eager": True,
            # A prompt cut into chunks and sampled with a seed ends vLLM's CPU worker ("does not use offset").
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(self.context_tokens, _PREFILL_TOKENS),
        }
        lora = self.adapter_rank and {"enable_lora": True, "max_lora_rank": room_for(self.adapter_rank)}
        size = self.pixels and {"shortest_edge": self.pixels[0], "longest_edge": self.pixels[1]}
        memory = self.kv_cache_bytes or (256 << 20 if self.on_cpu else None)
        return {
            "model": self.path,
            "revision": self.revision,
            "dtype": self.dtype,
            "max_model_len": self.context_tokens,
            "max_num_seqs": self.max_rows,
            "limit_mm_per_prompt": {"image": self.max_images, "video": 0},
            "gpu_memory_utilization": self.memory_share,
            "kv_cache_memory_bytes": memory,
            "trust_remote_code": self.trust_remote_code,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "mm_processor_kwargs": size and {"size": size},
            "mm_processor_cache_gb": 0,
            "mm_device_do_normalize": False,  # the codec has done it
            "skip_mm_profiling": self.on_cpu,
            "enable_sleep_mode": self.sleeps and not self.on_cpu,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "weight_transfer_config": {"backend": BACKEND},
            "worker_extension_cls": "agentvision.engine.worker.WeightReader",
            **(cpu if self.on_cpu else {}),
            **(lora or {}),
            **self.more,
        }
