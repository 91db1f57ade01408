"""What a plug-in takes is known before it is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from agentvision._settings import UnfitSettings, fitted


def make(
    path: Path, *, kind: Literal["a", "b"] = "a", size: Annotated[int, Field(ge=1)] = 1, free: Any = None
) -> None: ...


class Plain:
    def __init__(self, size: int) -> None: ...


@dataclass
class Data:
    size: int = 1


def test_values_are_converted_to_what_is_annotated() -> None:
    assert fitted(make, {"path": "x", "size": 2, "free": [1]}) == {"path": Path("x"), "size": 2, "free": [1]}


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({}, {"path": "the setting 'path' is missing"}),
        ({"path": "x", "sise": 1}, {"sise": "there is no setting 'sise'. Did you mean 'size'?"}),
        ({"path": "x", "size": "2"}, {"size": "'size' must be a valid integer; not '2'"}),
        ({"path": "x", "size": 0}, {"size": "'size' must be greater than or equal to 1; not 0"}),
        ({"path": "x", "kind": "c", "size": True}, {"kind": "'kind' must be 'a' or 'b'; not 'c'", "size": None}),
    ],
)
def test_every_setting_that_does_not_fit_is_named(settings: dict[str, Any], problems: dict[str, str | None]) -> None:
    with pytest.raises(UnfitSettings) as caught:
        fitted(make, settings)
    assert caught.value.problems.keys() == problems.keys()
    assert all(text is None or caught.value.problems[key] == text for key, text in problems.items())


@pytest.mark.parametrize("kind", [Plain, Data])
def test_a_class_takes_what_its_constructor_takes(kind: type) -> None:
    assert fitted(kind, {"size": 3}) == {"size": 3}
    with pytest.raises(UnfitSettings, match="must be a valid integer"):
        fitted(kind, {"size": "3"})


def test_what_takes_anything_is_given_anything() -> None:
    def free(**options: int) -> None: ...

    def unknown(size: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert fitted(free, {"x": "1"}) == {"x": "1"}
    assert fitted(unknown, {"size": "1"}) == {"size": "1"}


def test_what_the_caller_gives_is_no_setting_and_what_stands_beside_may_have_been_meant() -> None:
    def scored(trajectory: object, limit: int) -> None: ...

    assert fitted(scored, {"limit": 3}, given=1) == {"limit": 3}
    with pytest.raises(UnfitSettings) as caught:
        fitted(scored, {"limit": 3, "trajectory": 1, "wait": 1}, given=1, beside=("weight",))
    assert caught.value.problems.keys() == {"trajectory", "wait"}
    assert caught.value.problems["wait"].endswith("Did you mean 'weight'?")


def test_a_programs_own_objects_are_checked_too() -> None:
    assert fitted(make, {"path": Path("x"), "size": 2}) == {"path": Path("x"), "size": 2}
    with pytest.raises(UnfitSettings, match="'size' must be"):
        fitted(make, {"path": "x", "size": Path("2")})
