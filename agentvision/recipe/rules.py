"""What is valid in its section of a recipe and wrong beside another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agentvision.recipe.lora import VISUAL

if TYPE_CHECKING:
    from agentvision.recipe.schema import Recipe


_PROJECTOR = re.compile(r"merger\b.*|(mlp\.)?\d+")
"""Of the tower's layers those that join it to the language model: `merger.mlp.0`; its blocks' own have names, not numbers."""


def contradictions(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path, what) of each."""
    model, sampling, trainer = recipe.model, recipe.sampling, recipe.trainer
    for section, plugins in ((("rewards",), recipe.rewards), (("env", "tools"), recipe.env.tools)):
        names = [plugin.name for plugin in plugins]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield (*section, index), f"{name!r} stands here twice; each may stand once"
    if recipe.protocol.style == "plain" and recipe.env.tools:
        yield ("env", "tools"), "protocol.style 'plain' has no tool calls; write tools: [] or style: think"
    if None not in (model.min_pixels, model.max_pixels) and model.min_pixels > model.max_pixels:  # type: ignore[operator]
        yield (
            ("model", "min_pixels"),
            f"must not be above model.max_pixels ({model.max_pixels}), not {model.min_pixels}",
        )
    for index, target in enumerate((model.lora and model.lora.targets) or ()):
        part = "projector" if _PROJECTOR.fullmatch(target.removeprefix(VISUAL)) else "vision"
        if target.startswith(VISUAL) and part in model.freeze:
            yield (
                ("model", "lora", "targets", index),
                f"{target!r} adapts what model.freeze keeps: {part!r}; leave one out",
            )
    if sampling.max_tokens > sampling.context_tokens:
        whole = f"sampling.context_tokens ({sampling.context_tokens})"
        yield ("sampling", "max_tokens"), f"must not be above {whole}, not {sampling.max_tokens}"
    if trainer.steps == 0:
        return
    if not recipe.rewards:
        yield ("rewards",), "training needs at least one reward (or trainer.steps: 0)"
    if sampling.temperature == 0:
        yield ("sampling", "temperature"), "must be above 0 to train: greedy rollouts are all equal and teach nothing"
    for key, value, all_of_it in (("top_p", sampling.top_p, 1), ("top_k", sampling.top_k, 0)):
        if value != all_of_it:
            yield ("sampling", key), f"must be {all_of_it} to train, not {value}: a cut distribution biases the ratio"
    correction = recipe.algorithm.correction
    for key in ("level", "threshold"):
        value, default = getattr(correction, key), type(correction).model_fields[key].default
        if correction.kind == "none" and value != default:
            yield (
                ("algorithm", "correction", key),
                f"{value!r} does nothing: algorithm.correction.kind is 'none'; write truncated or masked there",
            )
    mini = trainer.mini_batch_prompts
    if mini is not None and trainer.prompts_per_step % mini:
        yield (
            ("trainer", "mini_batch_prompts"),
            f"must divide trainer.prompts_per_step ({trainer.prompts_per_step}), not {mini}",
        )
