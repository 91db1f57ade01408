"""Questions by the name of their source.

A source is a plug-in of the kind `data`: called with `split`, `seed` and what the recipe gives it (`path`, `fields`,
its options) it returns a sequence of `Sample`. `glyphs` and `handwriting` are synthetic worlds, `files` reads local
files and folders, `hub` the Hugging Face Hub, `visionthink` VisionThink's own sets from either. Pictures are decoded
late, when an episode begins.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from agentvision import plugins
from agentvision.errors import AgentVisionError, DataError, PluginError, suggest
from agentvision.types import Sample

if TYPE_CHECKING:
    from agentvision.recipe import Recipe
    from agentvision.recipe.dataset import Fields

Use: TypeAlias = Literal["train", "eval", "warm_start"]

_GIVEN = ("split", "seed", "path", "fields")
"""What the framework passes; every other parameter of a source is an option of the recipe's."""


def open_questions(recipe: Recipe, use: Use, *, seed: int | None = None) -> Sequence[Sample]:
    """The recipe's questions to train on, to evaluate on, or to demonstrate in its warm start; at most `limit` of them.

    What a split leaves out it takes from `recipe.data`, if it has the same source. `seed` is for sources that generate;
    None takes the recipe's. Rows that a source leaves out are logged by reason. Raises `DataError` when there are no
    questions, more than `data.max_bad_share` of the rows are none, a recipe that trains would be evaluated on what it
    trains on, or the source cannot be used; `PluginError` when there is no such source.
    """
    wanted = _wanted(recipe, use)
    seed = _seed(recipe, use) if seed is None else seed
    questions = _checked(_call(wanted, seed), wanted, recipe.data.max_bad_share)
    if use != "warm_start" and recipe.trainer.steps:
        _check_held_out(recipe, follows_split=bool(getattr(questions, "follows_split", True)))
    limit = wanted.limit
    return questions if limit is None or limit >= len(questions) else _First(questions, limit)


def check_source(recipe: Recipe, use: Use) -> None:
    """Check that the source of a split is there and takes what the recipe gives it. Nothing is opened or read.

    Raises `DataError` or `PluginError`, which begin with the section's name.
    """
    wanted = _wanted(recipe, use)
    try:
        source, arguments = _arguments(wanted, _seed(recipe, use))
        inspect.signature(source).bind(**arguments)
    except PluginError as error:
        raise PluginError(f"{wanted.where}: {error}") from None
    except TypeError as error:
        raise DataError(f"{wanted.where}: the source {wanted.source!r} cannot be opened: {error}") from None
    except ValueError:  # a source whose signature cannot be known
        return


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a recipe says of one of its sets of questions, with what it inherits."""

    where: str
    source: str
    split: str
    path: str | None
    fields: Fields
    options: dict[str, Any]
    limit: int | None


def _wanted(recipe: Recipe, use: Use) -> _Wanted:
    data = recipe.data
    if use != "warm_start":
        split = data.eval if use == "eval" else data.train
    elif recipe.warm_start is None:
        raise ValueError("this recipe has no warm start")
    else:
        split = recipe.warm_start.data
    source = split.source or data.source
    same = source == data.source
    return _Wanted(
        where=f"data.{use}" if use != "warm_start" else "warm_start.data",
        source=source,
        split=split.split or ("test" if use == "eval" else "train"),
        path=split.path or (data.path if same else None),
        fields=split.fields or (data.fields if same else type(data.fields)()),
        options={**(data.options if same else {}), **split.options},
        limit=split.limit,
    )


def _seed(recipe: Recipe, use: Use) -> int:
    own = recipe.evaluation.seed if use == "eval" else None
    return recipe.seed if own is None else own


def _arguments(wanted: _Wanted, seed: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The source, and what to call it with. Raises `PluginError` and, for what it does not take, `DataError`."""
    name, where = wanted.source, wanted.where
    source = plugins.load("data", name)
    given = {"split": wanted.split, "seed": seed, "path": wanted.path, "fields": wanted.fields}
    takes = _parameters(source)
    if takes is not None:
        for key in wanted.options:
            if key not in takes or key in _GIVEN:
                hint = suggest(key, takes - {*_GIVEN})
                raise DataError(f"{where}: the source {name!r} has no option {key!r}.{hint}")
        if wanted.path is not None and "path" not in takes:
            raise DataError(f"{where}: the source {name!r} reads no path, not {wanted.path!r}; set the path to null")
        given = {key: value for key, value in given.items() if key in takes}
    if given.get("path") is None:
        given.pop("path", None)
    return source, {**given, **wanted.options}


def _call(wanted: _Wanted, seed: int) -> Any:
    source, arguments = _arguments(wanted, seed)
    try:
        return source(**arguments)
    except AgentVisionError as error:
        raise type(error)(f"{wanted.where}: {error}") from error
    except TypeError as error:
        raise DataError(f"{wanted.where}: the source {wanted.source!r} cannot be opened: {error}") from error


def _parameters(source: Callable[..., Any]) -> frozenset[str] | None:
    """Names of a source's parameters; None when it takes any."""
    try:
        parameters = inspect.signature(source).parameters.values()
    except (TypeError, ValueError):
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(p.name for p in parameters)


def _checked(questions: Any, wanted: _Wanted, max_bad_share: float) -> Sequence[Sample]:
    """What a source returned, if it is a sequence of questions; what it left out is logged."""
    name, where = wanted.source, wanted.where
    try:
        count = len(questions)
        first = questions[0] if count else None
    except TypeError:
        raise DataError(f"{where}: the source {name!r} gave {type(questions).__name__!r}, not a sequence") from None
    left_out = getattr(questions, "left_out", None)
    told = str(left_out or "")
    if not count:
        raise DataError(f"{where}: the source {name!r} has no questions{told and f'; {told}'}")
    if not isinstance(first, Sample):
        raise DataError(f"{where}: the source {name!r} gives {type(first).__name__!r}, not `Sample`")
    if getattr(left_out, "share", 0.0) > max_bad_share:
        raise DataError(f"{where}: {told}. That is more than data.max_bad_share={max_bad_share!r} allows")
    if told:
        logging.getLogger(__name__).warning("%s: %s", where, told)
    return questions


def _check_held_out(recipe: Recipe, *, follows_split: bool) -> None:
    """Raise where a recipe that trains would be evaluated on the rows that it trains on."""
    train, held_out = _wanted(recipe, "train"), _wanted(recipe, "eval")
    if train.path is None or (train.source, train.path) != (held_out.source, held_out.path):
        return
    if follows_split and (train.split != held_out.split or train.options != held_out.options):
        return
    raise DataError(
        f"data.eval: {train.path!r} is what data.train reads too, so the model would be measured on what it was trained on. "
        "Write {split} in the path, give data.eval a path of its own, or hold a share of the rows out with "
        "data.options.holdout, such as 0.05"
    )


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
