"""The recipe's section `model.lora`: an adapter that is trained in place of the weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agentvision.recipe.parts import Name, PositiveFloat, PositiveInt, Section

VISUAL = "visual."
"""How a target in the vision tower begins."""


class Lora(Section):
    """Low-rank adapters of linear layers: W becomes W + (alpha / rank)·B·A, W keeps its values, and A and B are trained."""

    rank: PositiveInt = 16
    """Rows of A and columns of B."""
    alpha: PositiveFloat = 32.0
    """The adapter counts alpha / rank times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a layer's inputs that its adapter does not see while it is trained. Above 0 the trainer's log-probs are noisy
    and no longer those that were sampled from."""
    targets: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Ends of names of linear layers: `q_proj`, `mlp.up_proj`, `layers.3.self_attn.o_proj`; after `visual.` those of the vision
    tower and of what joins it to the language model: `visual.qkv`, `visual.merger.mlp.0`. None: all of the language model."""

    @property
    def of_language_alone(self) -> bool:
        """Whether only layers of the language model are adapted."""
        return self.targets is None or not any(target.startswith(VISUAL) for target in self.targets)
