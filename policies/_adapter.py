"""How an adapter gets to vLLM: as it is, for the model that is there, or merged into weights that are all sent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, TypeAlias

from agentvision.engine.adapter import MAX_RANK
from agentvision.engine.sync import adapter_problem
from agentvision.engine.types import Control, EngineError, EngineLost
from agentvision.errors import PluginError
from agentvision.recipe.lora import Lora

Sending: TypeAlias = Literal["auto", "adapter", "merged"]
"""`auto` is as it is, where the engine can."""
_log = logging.getLogger(__name__)


def sends_adapter(adapter: Lora | None, how: Sending) -> bool:
    """Whether an adapter is to be sent as it is. Raises `PluginError` where that is wanted and cannot be."""
    if adapter is None or how == "merged":
        return False
    if refusal := adapter_refusal(adapter, how):
        raise PluginError(refusal)
    problem = _obstacle(adapter)
    if problem is not None:
        _log.warning("%s: the adapter is merged into weights that are all sent.", problem)
    return problem is None


def adapter_refusal(adapter: Lora | None, how: Sending) -> str | None:
    """`key: what` where it is to be sent as it is, and cannot be."""
    if adapter is None or how != "adapter" or (problem := _obstacle(adapter)) is None:
        return None
    return f"policy.options.lora: 'adapter' cannot be: {problem}; take 'auto' or 'merged'"


def _obstacle(adapter: Lora) -> str | None:
    if not adapter.of_language_alone:
        return "model.lora.targets names layers of the vision tower, and vLLM adapts the language model alone"
    if adapter.rank > MAX_RANK:
        return f"model.lora.rank is {adapter.rank}, and vLLM takes {MAX_RANK} at most"
    return None


async def refused(controls: Sequence[Control], rank: int, how: Sending) -> bool:
    """Whether no server takes an adapter of this rank, so that it has to be merged. Raises `EngineError` where it must not be."""
    problems, lost = [], None
    for control in controls:
        try:
            problems.append(await adapter_problem(control, rank))
        except EngineLost as error:  # it is asked for no turns before it has come back and taken the weights
            lost = error
    if not problems and lost is not None:
        raise lost
    if not all(problems):
        return False
    if how == "adapter":
        raise EngineError(
            f"policy.options.lora is 'adapter', and no server takes one: {problems[0]}; take 'auto' or 'merged'"
        )
    _log.warning("No server takes an adapter (%s): it is merged into weights that are all sent.", problems[0])
    return True
