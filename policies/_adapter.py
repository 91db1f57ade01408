"""How an adapter gets to vLLM: as it is, for the model that is there, or merged into weights that are all sent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, TypeAlias

from agentvision.engine.adapter import MAX_RANK
from agentvision.engine.sync import adapter_problem
from agentvision.engine.types import Control, EngineError
from agentvision.errors import PluginError
from agentvision.recipe.lora import Lora

Sending: TypeAlias = Literal["auto", "adapter", "merged"]
"""`auto` is as it is, where the engine can."""
_log = logging.getLogger(__name__)


def sends_adapter(adapter: Lora | None, how: Sending) -> bool:
    """Whether an adapter is to be sent as it is. Raises `PluginError` where that is wanted and cannot be."""
    if adapter is None or how == "merged":
        return False
    problem = None
    if not adapter.of_language_alone:
        problem = "model.lora.targets names layers of the vision tower, and vLLM adapts the language model alone"
    elif adapter.rank > MAX_RANK:
        problem = f"model.lora.rank is {adapter.rank}, and vLLM takes {MAX_RANK} at most"
    if problem is not None and how == "adapter":
        raise PluginError(f"policy.options.lora is 'adapter', but {problem}; take 'auto' or 'merged'")
    if problem is not None:
        _log.warning("%s: the adapter is merged into weights that are all sent.", problem)
    return problem is None


async def refused(controls: Sequence[Control], rank: int, how: Sending) -> bool:
    """Whether no server takes an adapter of this rank, so that it has to be merged. Raises `EngineError` where it must not be."""
    problems = [await adapter_problem(control, rank) for control in controls]
    if not all(problems):
        return False
    if how == "adapter":
        raise EngineError(
            f"policy.options.lora is 'adapter', and no server takes one: {problems[0]}; take 'auto' or 'merged'"
        )
    _log.warning("No server takes an adapter (%s): it is merged into weights that are all sent.", problems[0])
    return True
