"""What `agentvision data` works on: a recipe's sets of questions, or those in a file or folder.

A file is read by a recipe made for it, which overrides may change as they change any other (`data.fields.question=text`,
`model.path=…`), so that what is checked is what training would read. Nothing here refuses a set for its bad rows: those
are what is to be looked at.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentvision.data import open_questions
from agentvision.data.arrow import Folder
from agentvision.errors import DataError
from agentvision.recipe import Recipe, is_recipe, load_recipe, make_recipe
from agentvision.types import Sample


@dataclass(frozen=True, slots=True)
class Target:
    """`sets` maps the name of a split (or '' where there is but one) to its questions."""

    name: str
    recipe: Recipe
    sets: Mapping[str, Sequence[Sample]]


def open_target(target: str, *, overrides: Sequence[str] = (), profile: str | None = None) -> Target:
    """The sets that a recipe trains and is evaluated on, or all that are found in a file or folder.

    `{split}` in a file's name stands for any split. Raises `DataError` when there is nothing, and `RecipeError`.
    """
    if is_recipe(target):
        recipe = load_recipe(target, profile=profile, overrides=overrides)
        return Target(recipe.name, recipe, {use: open_questions(_tolerant(recipe), use) for use in ("train", "eval")})
    if profile is not None:
        raise DataError(f"{target!r} is not a recipe, and has no profile {profile!r}")
    values: dict[str, Any] = {
        "name": Path(target).name.replace("{split}", "data") or "data",
        "model": {"path": "Qwen/Qwen2.5-VL-7B-Instruct"},
        "data": {"source": "files", "path": target},
        "env": {"first_view": {"scale": 0.5}},
        "trainer": {"steps": 0},
    }
    recipe = make_recipe(values, overrides=overrides)
    splits = ["train", "test"] if "holdout" in recipe.data.options else _splits(target)
    sets = _open_splits(recipe, splits)
    if recipe.data.source == "files" and all(_is_visionthink(rows) for rows in sets.values()):
        values["data"]["source"] = "visionthink"
        recipe = make_recipe(values, overrides=overrides)
        sets = _open_splits(recipe, splits)
    return Target(target, recipe, sets)


def open_to_split(
    target: str, *, overrides: Sequence[str] = (), profile: str | None = None
) -> tuple[Recipe, Sequence[Sample]]:
    """A recipe and its questions to train on; for a file or folder, those of its first split, and `visionthink`'s way of asking.

    Raises what `open_target` does.
    """
    if is_recipe(target):
        recipe = load_recipe(target, profile=profile, overrides=overrides)
        return recipe, open_questions(_tolerant(recipe), "train")
    own = [text for text in overrides if text.startswith("data.")]
    found = open_target(target, overrides=own)
    recipe = load_recipe("visionthink", profile=profile, overrides=[o for o in overrides if o not in own])
    return recipe, next(iter(found.sets.values()))


def _splits(target: str) -> list[str]:
    """Names of the splits in a file or folder; '' alone where it has none."""
    if "{split}" in target:
        pattern = re.compile("(.+)".join(map(re.escape, target.split("{split}"))))
        paths = glob.glob("*".join(map(glob.escape, target.split("{split}"))))  # noqa: PTH207  (Path's takes no absolute one)
        found = sorted(match[1] for path in paths if (match := pattern.fullmatch(path)))
        if not found:
            raise DataError(f"there is no file or folder like {target!r}")
        return found
    if Path(target).is_dir():
        return [split or "" for split in Folder.open(Path(target)).splits]
    return [""]


def _open_splits(recipe: Recipe, splits: Sequence[str]) -> dict[str, Sequence[Sample]]:
    return {split: open_questions(_tolerant(recipe, split), "train") for split in splits}


def _is_visionthink(rows: Sequence[Sample]) -> bool:
    mapping = getattr(rows, "mapping", {})
    return (mapping.get("question"), mapping.get("images")) == ("problem", "images")


def _tolerant(recipe: Recipe, split: str | None = None) -> Recipe:
    """The recipe without its limit on bad rows and its rule about held-out rows; with `split`, reading that one."""
    data: dict[str, Any] = {"max_bad_share": 1.0}
    if split is not None:
        data["train"] = recipe.data.train.model_copy(update={"split": split or recipe.data.train.split})
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=data),
            "trainer": recipe.trainer.model_copy(update={"steps": 0}),
        }
    )
