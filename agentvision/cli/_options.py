"""Options that several commands take, with the values that they admit."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Seed = Annotated[int | None, Parameter(validator=Number(gte=0, lt=2**63))]
"""As in a recipe."""
Count = Annotated[int | None, Parameter(validator=Number(gte=1))]
