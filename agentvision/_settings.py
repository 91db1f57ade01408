"""What a recipe sets for a plug-in, against what the plug-in takes: before it is called.

Names are checked against the signature, values by pydantic against the annotations, as strictly as the recipe itself
(`"60"` is no number); a parameter without an annotation, or with one that pydantic cannot read, takes anything.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from agentvision.errors import suggest


class UnfitSettings(Exception):
    """`problems` says of each setting, by its name, what is wrong with it."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(problems.values()))
        self.problems = problems


def taken(make: Callable[..., Any], *, given: int = 0) -> dict[str, inspect.Parameter]:
    """The parameters that can be set by name, `**anything` among them, after the first `given`, which a caller fills."""
    parameters = list(inspect.signature(make).parameters.items())[given:]
    return {k: p for k, p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_KEYWORD)}


def fitted(
    make: Callable[..., Any],
    settings: Mapping[str, Any],
    *,
    given: int = 0,
    beside: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> dict[str, Any]:
    """The settings as `make` takes them, converted to its annotations. Raises `UnfitSettings` with every problem.

    Its first `given` parameters are not settings; `beside` are names that stand in the same place and go elsewhere, which
    may have been meant; `elsewhere` are settings that have another place of their own, and so were not.
    """
    try:
        parameters = taken(make, given=given)
    except (TypeError, ValueError):  # written in C: it speaks for itself
        return dict(settings)
    named = {k: p for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    free = len(named) < len(parameters)
    hints = _hints(make)
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for key, value in settings.items():
        if key not in named and not free:
            meant = (*(name for name in named if name not in elsewhere), *beside)
            problems[key] = f"there is no setting {key!r}.{suggest(str(key), meant)}"
            continue
        try:
            values[key] = _converted(value, hints.get(key, Any))
        except ValidationError as error:
            errors = error.errors(include_url=False)
            wanted = dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in errors)
            name, item = key, errors[0]["loc"]
            if len(errors) == 1 and item and all(isinstance(part, int) for part in item):  # of a list
                name, value = ".".join(map(str, (key, *item))), errors[0]["input"]
            problems[key] = f"{name!r} must be {', or '.join(wanted)}; not {value!r}"
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in settings:
            problems[key] = f"the setting {key!r} is missing"
    if problems:
        raise UnfitSettings(problems)
    return values


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by name; none where they name what exists for type checkers alone."""
    if inspect.isclass(make) and "__dataclass_fields__" not in vars(make):
        make = make.__init__
    try:
        return typing.get_type_hints(make, include_extras=True)
    except (NameError, TypeError):
        return {}


def _converted(value: Any, hint: Any) -> Any:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type that pydantic cannot check, or that brings its own rules
        return value
    try:
        text = json.dumps(value)
    except TypeError:  # not from a recipe's file, but a program's own object
        return adapter.validate_python(value, strict=True)
    return adapter.validate_json(text, strict=True)
