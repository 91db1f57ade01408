"""Where things lie in a picture: sizes, boxes, and the map from a view's pixels to its original's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Size: TypeAlias = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True, slots=True)
class Affine:
    """Map from a view's pixels to its original's: X = a·x + b·y + c, Y = d·x + e·y + f (continuous pixel coordinates)."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def then(self, outer: Affine) -> Affine:
        """The map that applies `self` first and `outer` second."""
        return Affine(
            a=outer.a * self.a + outer.b * self.d,
            b=outer.a * self.b + outer.b * self.e,
            c=outer.a * self.c + outer.b * self.f + outer.c,
            d=outer.d * self.a + outer.e * self.d,
            e=outer.d * self.b + outer.e * self.e,
            f=outer.d * self.c + outer.e * self.f + outer.f,
        )

    def inverse(self) -> Affine:
        """The map from the original's pixels back to the view's. Raises `ValueError` when it has none."""
        det = self.a * self.e - self.b * self.d
        if det == 0:
            raise ValueError(f"{self!r} is singular: a view must have an area")
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))


@dataclass(frozen=True, slots=True)
class Box:
    """A region (x0, y0, x1, y1) in pixels, right and bottom exclusive; whose pixels is said where it is used."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0
