"""Questions by the name of their source.

A source is a plug-in of the kind `data`: called with `split`, `seed` and what the recipe gives it (`path`, `fields`,
its options) it returns a sequence of `Sample`. `glyphs` and `handwriting` are synthetic worlds, `files` reads local
files and folders, `hub` the Hugging Face Hub. Pictures are decoded late, when an episode begins.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from agentvision import plugins
from agentvision.errors import AgentVisionError, DataError, suggest
from agentvision.types import Sample

if TYPE_CHECKING:
    from agentvision.recipe import Recipe
    from agentvision.recipe.schema import Split

Use: TypeAlias = Literal["train", "eval", "warm_start"]

_GIVEN = ("split", "seed", "path", "fields")
"""What the framework passes; every other parameter of a source is an option of the recipe's."""


def open_questions(recipe: Recipe, use: Use, *, seed: int | None = None) -> Sequence[Sample]:
    """The recipe's questions to train on, to evaluate on, or to demonstrate in its warm start; at most `limit` of them.

    What a split leaves out it takes from `recipe.data`, if it has the same source. `seed` is for sources that generate;
    None takes the recipe's. Rows that a source leaves out are logged by reason. Raises `DataError` when there are no
    questions or the source cannot be used, `PluginError` when there is no such source.
    """
    data, split = recipe.data, _split(recipe, use)
    name = split.source or data.source
    same = name == data.source
    given: dict[str, Any] = {
        "split": split.split or ("test" if use == "eval" else "train"),
        "seed": _seed(recipe, use) if seed is None else seed,
        "path": split.path or (data.path if same else None),
        "fields": split.fields or (data.fields if same else type(data.fields)()),
    }
    options = {**(data.options if same else {}), **split.options}
    where = f"data.{use}" if use != "warm_start" else "warm_start.data"
    return _checked(_open(name, given, options, where), name, where, split.limit)


def _split(recipe: Recipe, use: Use) -> Split:
    if use == "eval":
        return recipe.data.eval
    if use == "train":
        return recipe.data.train
    if recipe.warm_start is None:
        raise ValueError("this recipe has no warm start")
    return recipe.warm_start.data


def _seed(recipe: Recipe, use: Use) -> int:
    own = recipe.evaluation.seed if use == "eval" else None
    return recipe.seed if own is None else own


def _open(name: str, given: dict[str, Any], options: dict[str, Any], where: str) -> Any:
    source = plugins.load("data", name)
    takes = _parameters(source)
    if takes is not None:
        for key in options:
            if key not in takes or key in _GIVEN:
                hint = suggest(key, takes - {*_GIVEN})
                raise DataError(f"{where}: the source {name!r} has no option {key!r}.{hint}")
        if given["path"] is not None and "path" not in takes:
            raise DataError(f"{where}: the source {name!r} reads no path, not {given['path']!r}; set the path to null")
        given = {key: value for key, value in given.items() if key in takes}
    if given.get("path") is None:
        given.pop("path", None)
    try:
        return source(**given, **options)
    except AgentVisionError as error:
        raise type(error)(f"{where}: {error}") from error
    except TypeError as error:
        raise DataError(f"{where}: the source {name!r} cannot be opened: {error}") from error


def _parameters(source: Callable[..., Any]) -> frozenset[str] | None:
    """Names of a source's parameters; None when it takes any."""
    try:
        parameters = inspect.signature(source).parameters.values()
    except (TypeError, ValueError):
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(p.name for p in parameters)


def _checked(questions: Any, name: str, where: str, limit: int | None) -> Sequence[Sample]:
    """What a source returned, if it is a sequence of questions, cut to the limit; what it left out is logged."""
    try:
        count = len(questions)
        first = questions[0] if count else None
    except TypeError:
        raise DataError(f"{where}: the source {name!r} gave {type(questions).__name__!r}, not a sequence") from None
    left_out = str(getattr(questions, "left_out", ""))
    if not count:
        raise DataError(f"{where}: the source {name!r} has no questions{left_out and f'; {left_out}'}")
    if not isinstance(first, Sample):
        raise DataError(f"{where}: the source {name!r} gives {type(first).__name__!r}, not `Sample`")
    if left_out:
        logging.getLogger(__name__).warning("%s: %s", where, left_out)
    return questions if limit is None or limit >= count else _First(questions, limit)


class _First(Sequence[Sample]):
    """The first `count` questions of a sequence, as lazy as the sequence itself, with all else that it can do."""

    def __init__(self, questions: Sequence[Sample], count: int) -> None:
        self._questions, self._count = questions, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._questions[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"there are {self._count} questions; there is no question {index}")
        return self._questions[index % self._count]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy under way has no `_questions` yet
            raise AttributeError(name)
        return getattr(self._questions, name)
