"""From a recipe's list of one-key maps to weighted rewards, with every problem named at once.

A plug-in is a class that takes its settings as keyword arguments, a `@reward` function or a plain one (settings: its
parameters after the first), or a finished reward without settings. Names of settings are checked against the signature,
their values by pydantic against the annotations; what the class itself refuses (`ValueError`) is reported the same way.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentvision.errors import AgentVisionError, RecipeError, suggest
from agentvision.rewards.base import FunctionReward, reward
from agentvision.rewards.compose import WeightedPart
from agentvision.rewards.schedule import Schedule

_OWN_KEYS = ("weight", "timeout_s")
"""Settings of the composition; they never reach the reward."""


def parts_from_config(specs: Sequence[Mapping[str, Mapping[str, Any] | None]]) -> list[WeightedPart]:
    """One part a spec. Raises `RecipeError` with all problems, one a line."""
    parts: list[WeightedPart] = []
    problems: list[str] = []
    for index, spec in enumerate(specs):
        if not isinstance(spec, Mapping) or len(spec) != 1:
            problems.append(f"rewards.{index}: {spec!r} is not a map of one name; write `- name: {{weight: 1.0}}`")
            continue
        [(name, settings)] = spec.items()
        where = f"rewards.{index}.{name}"
        if settings is not None and not isinstance(settings, Mapping):
            problems.append(f"{where}: {settings!r} is not a map of settings; write `- {name}: {{weight: 1.0}}`")
            continue
        try:
            parts.append(_part(where, str(name), dict(settings or {})))
        except _Problems as error:
            problems += error.lines
        except AgentVisionError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise RecipeError("\n".join(problems))
    return parts


def settings_of(found: Any) -> dict[str, inspect.Parameter]:
    """The settings that a plug-in takes in a recipe, besides `weight` and `timeout_s`. `**anything` is one of them."""
    if not inspect.isclass(found):
        found = found.function if isinstance(found, FunctionReward) else found
        if not inspect.isroutine(found):  # a finished reward
            return {}
    parameters = list(inspect.signature(found).parameters.items())
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in parameters[0 if inspect.isclass(found) else 1 :] if p.kind in kinds}


class _Problems(Exception):
    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def _part(where: str, name: str, settings: dict[str, Any]) -> WeightedPart:
    from agentvision import plugins

    own = {key: settings.pop(key) for key in _OWN_KEYS if key in settings}
    found = plugins.load("rewards", name)
    lines = []
    if isinstance(own.get("weight"), Mapping):
        try:
            own["weight"] = _schedule(f"{where}.weight", own["weight"])
        except _Problems as error:
            lines += error.lines
            del own["weight"]
    for key, value in own.items():
        if isinstance(value, bool) or not isinstance(value, int | float | Schedule):
            lines.append(f"{where}.{key}: {value!r} is not a number")
    try:
        made = _construct(where, found, settings)
    except _Problems as error:
        raise _Problems(lines + error.lines) from None
    if lines:
        raise _Problems(lines)
    try:
        return WeightedPart(made, name=_short(name), **own)
    except ValueError as error:
        raise _Problems([f"{where}: {error}"]) from None


def _schedule(where: str, settings: Mapping[str, Any]) -> Schedule:
    checked = _checked(where, settings, settings_of(Schedule), _hints(Schedule), own=())
    try:
        return Schedule(**checked)
    except ValueError as error:
        raise _Problems([f"{where}: {error}"]) from error


def _short(name: str) -> str:
    """A dotted path's or file's attribute; a plug-in's name as it is."""
    return name.rpartition(":")[2] or name


def _construct(where: str, found: Any, settings: dict[str, Any]) -> Callable[..., Any]:
    """The reward that a plug-in makes of its settings."""
    if not callable(found):
        raise _Problems([f"{where}: {found!r} is no reward: a class, a @reward function or a callable object is"])
    if inspect.isclass(found):
        checked = _checked(where, settings, settings_of(found), _hints(found))
        try:
            made = found(**checked)
        except RecipeError as error:  # of settings that the class checks itself, a line each
            raise _Problems([f"{where}.{line}" for line in str(error).splitlines()]) from error
        except (ValueError, TypeError) as error:
            raise _Problems([f"{where}: {error}"]) from error
        if not callable(made):
            raise _Problems([f"{where}: {found.__name__} has neither `__call__(self, trajectory)` nor `(self, group)`"])
        return made
    if inspect.isroutine(found):
        found = reward(found)
    if isinstance(found, FunctionReward):
        return found.configure(**_checked(where, settings, settings_of(found), _hints(found.function)))
    if settings:
        raise _Problems([f"{where}.{key}: this reward takes no settings but weight and timeout_s" for key in settings])
    return found


def _checked(
    where: str,
    settings: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    hints: Mapping[str, Any],
    *,
    own: Sequence[str] = _OWN_KEYS,
) -> dict[str, Any]:
    """The settings, converted to the annotated types. `own` are keys that may stand beside them."""
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {k: p for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    checked: dict[str, Any] = {}
    lines: list[str] = []
    for key, value in settings.items():
        if key not in known and not free:
            hint = suggest(str(key), (*known, *own))
            lines.append(f"{where}.{key}: no such setting (value {value!r}).{hint}")
            continue
        try:
            checked[str(key)] = _convert(value, hints.get(key, Any))
        except ValueError as error:
            lines.append(f"{where}.{key}: {_first_message(error)} (value {value!r})")
    lines += [
        f"{where}: the setting {key!r} is missing"
        for key, parameter in known.items()
        if parameter.default is parameter.empty and key not in settings
    ]
    if lines:
        raise _Problems(lines)
    return checked


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by name; none where they name what exists for type checkers alone."""
    if inspect.isclass(target) and "__init__" in vars(target) and not hasattr(target, "__dataclass_fields__"):
        target = target.__init__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):
        return {}


def _convert(value: Any, hint: Any) -> Any:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except PydanticUserError:  # a type that pydantic cannot check is left to the reward
        return value
    return adapter.validate_python(value)


def _first_message(error: ValueError) -> str:
    from pydantic import ValidationError

    return str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
