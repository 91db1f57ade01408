"""JSON that a model wrote, read without mercy: what would be read in two ways is refused, not guessed at."""

from __future__ import annotations

import json
from typing import Any


def strict_json(text: str) -> Any:
    """The value; no key twice, no NaN or infinity. Raises `ValueError`, and `RecursionError` for too deep a nesting."""
    return _DECODER.decode(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
