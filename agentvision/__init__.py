"""agentvision: agents that look closer. Environments, vision tools, rewards and one GRPO trainer for any tool policy.

Names are imported on first use, so that `import agentvision` (and `agentvision --help`) needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentvision.agent import Agent as Agent
    from agentvision.agent import Answer as Answer
    from agentvision.env import Environment as Environment
    from agentvision.env import VisionEnv as VisionEnv
    from agentvision.errors import AgentVisionError as AgentVisionError
    from agentvision.errors import ToolFailure as ToolFailure
    from agentvision.errors import ToolRetry as ToolRetry
    from agentvision.evaluate import evaluate as evaluate
    from agentvision.geometry import Box as Box
    from agentvision.images import ImageStore as ImageStore
    from agentvision.recipe import Recipe as Recipe
    from agentvision.recipe import load_recipe as load_recipe
    from agentvision.rewards import reward as reward
    from agentvision.tool import Tool as Tool
    from agentvision.tool import ToolContext as ToolContext
    from agentvision.tool import ToolResult as ToolResult
    from agentvision.tool import ViewId as ViewId
    from agentvision.tool import tool as tool
    from agentvision.train import train as train
    from agentvision.types import Group as Group
    from agentvision.types import Sample as Sample
    from agentvision.types import Score as Score
    from agentvision.types import StopReason as StopReason
    from agentvision.types import Trajectory as Trajectory

_HOMES = {
    "Agent": "agent",
    "Answer": "agent",
    "AgentVisionError": "errors",
    "Box": "geometry",
    "Environment": "env",
    "Group": "types",
    "ImageStore": "images",
    "Recipe": "recipe",
    "Sample": "types",
    "Score": "types",
    "StopReason": "types",
    "Tool": "tool",
    "ToolContext": "tool",
    "ToolFailure": "errors",
    "ToolResult": "tool",
    "ToolRetry": "errors",
    "Trajectory": "types",
    "ViewId": "tool",
    "VisionEnv": "env",
    "evaluate": "evaluate",
    "load_recipe": "recipe",
    "reward": "rewards",
    "tool": "tool",
    "train": "train",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agentvision' has no attribute {name!r}")
    home = importlib.import_module(f"agentvision.{_HOMES[name]}")
    # `tool`, `train` and `evaluate` name both a module and the function in it: those modules are callable.
    return home if home.__name__ == f"agentvision.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
