"""From a recipe's list of one-key maps to weighted rewards, with every problem named at once.

A plug-in is a class that takes its settings as keyword arguments, a `@reward` function or a plain one (settings: its
parameters after the first), or a finished reward without settings. Settings are checked as those of every plug-in
(`_settings`); what the class itself refuses (`ValueError`) is reported the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentvision._settings import UnfitSettings, fitted, taken
from agentvision.errors import AgentVisionError, RecipeError
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
    if inspect.isclass(found):
        return taken(found)
    found = found.function if isinstance(found, FunctionReward) else found
    return taken(found, given=1) if inspect.isroutine(found) else {}  # a finished reward takes none


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
    checked = _fitted(where, Schedule, settings)
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
        checked = _fitted(where, found, settings, beside=_OWN_KEYS)
        try:
            made = found(**checked)
        except RecipeError as error:  # of settings that the class checks itself, a line each
            lines = str(error).splitlines()
            lines = [line if line.startswith(" ") else f"{where}.{line}" for line in lines]  # an excerpt is indented
            raise _Problems(lines) from error
        except (ValueError, TypeError) as error:
            raise _Problems([f"{where}: {error}"]) from error
        if not callable(made):
            raise _Problems([f"{where}: {found.__name__} has neither `__call__(self, trajectory)` nor `(self, group)`"])
        return made
    if inspect.isroutine(found):
        found = reward(found)
    if isinstance(found, FunctionReward):
        return found.configure(**_fitted(where, found.function, settings, given=1, beside=_OWN_KEYS))
    if settings:
        raise _Problems([f"{where}.{key}: this reward takes no settings but weight and timeout_s" for key in settings])
    return found


def _fitted(
    where: str, make: Callable[..., Any], settings: Mapping[str, Any], *, given: int = 0, beside: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings as `make` takes them; what is missing is told of the whole, for it stands nowhere."""
    try:
        return fitted(make, settings, given=given, beside=beside)
    except UnfitSettings as error:
        problems = error.problems.items()
        raise _Problems(
            [f"{f'{where}.{key}' if key in settings else where}: {what}" for key, what in problems]
        ) from None
