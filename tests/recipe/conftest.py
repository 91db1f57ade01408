from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentvision.errors import RecipeError
from agentvision.recipe import Recipe, load_recipe

BASE = """\
name: base
model: {path: some/model}
data: {source: glyphs}
env: {tools: [resize_image]}
rewards:
  - accuracy
  - format: {weight: 0.5}
  - ratio_penalty: {rule: paper, threshold: 0.2}
trainer: {prompts_per_step: 16}
profiles:
  tiny:
    model: {path: small/model, dtype: float32}
    trainer: {steps: 3}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a recipe; its text is laid under the base recipe's unless `base` is False."""

    def _write(text: str = "", *, name: str = "mine.yaml", base: bool = True) -> Path:
        if base:
            (tmp_path / "base.yaml").write_text(BASE)
            text = f"extends: ./base.yaml\n{text}"
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def fails(path: Path, **kwargs: object) -> str:
    """The message of the error that loading ends in, with the folder's name cut out."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, **kwargs)  # type: ignore[arg-type]
    return str(caught.value).replace(f"{path.parent}/", "")


def load(path: Path, *overrides: str, profile: str | None = None) -> Recipe:
    return load_recipe(path, profile=profile, overrides=overrides)
