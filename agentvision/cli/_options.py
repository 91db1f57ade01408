"""Options that several commands take, with the values that they admit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from agentvision.errors import RecipeError

Seed = Annotated[int | None, Parameter(validator=Number(gte=0, lt=2**63))]
"""As in a recipe."""
Count = Annotated[int | None, Parameter(validator=Number(gte=1))]
Flag = Annotated[bool, Parameter(negative=())]
AsJson = Annotated[bool, Parameter(name="--json", negative=())]


def named_values(texts: Iterable[str]) -> dict[str, Any]:
    """Settings given as name=value, the value written as in a recipe. Raises `RecipeError`."""
    from agentvision.recipe.tree import parse

    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        node, problems = parse(value, text)
        if node is None or problems or not name or not equals:
            why = problems[0].what if problems else "the value is missing" if name else "the name is missing"
            raise RecipeError(f"{text!r} is not name=value: {why}")
        values[name] = node.plain()
    return values
