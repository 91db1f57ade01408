"""What looking costs: the size at which an image is seen, and the visual tokens of that size.

Qwen's vision tower takes sides that are multiples of patch · merge pixels ("factor"), inside a budget of pixels; every
factor × factor block becomes one token of the language model. `VisionSpec.fit` is the rule that gives the size (Qwen's
`smart_resize`), made a fixed point: the fitted size of a fitted size is itself, so a picture rendered once at its
fitted size is never resized again. `flops.py` prices what a model does with the tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from agentvision.errors import ImageError
from agentvision.geometry import Size

MAX_ASPECT = 200
"""Longest side over shortest: what Qwen's processor admits."""


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """How a model's image processor sizes pictures. The defaults are Qwen2.5-VL's.

    `patch` is the side of a patch in pixels, `merge` the patches a side that make one token, `min_pixels` and
    `max_pixels` the budget of one picture.
    """

    patch: int = 14
    merge: int = 2
    min_pixels: int = 3136
    max_pixels: int = 12845056

    def __post_init__(self) -> None:
        for name in ("patch", "merge", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"VisionSpec.{name} must be a whole number of at least 1, not {value!r}")

    @property
    def factor(self) -> int:
        """Side in pixels of the block that becomes one token."""
        return self.patch * self.merge

    def fit(self, size: Size, *, scale: float = 1.0) -> Size:
        """The (width, height) at which a picture of this size is seen.

        `scale` multiplies both sides; 1 is the resolution at which the whole picture is seen in full, so that a
        picture above the budget is first brought inside it. Raises `ImageError` for an empty picture and for one longer
        than 200 times its other side.
        """
        width, height = size
        if width < 1 or height < 1:
            raise ImageError(f"a picture must be at least 1 × 1 pixels, this one is {width} × {height}")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ImageError(
                f"the picture is {width} × {height} pixels: one side may be at most {MAX_ASPECT} times the other; "
                "cut it into pieces first"
            )
        if not (math.isfinite(scale) and scale > 0):
            raise ImageError(f"a picture's scale must be a positive number, not {scale!r}")
        if scale != 1.0:
            scale *= min(1.0, math.sqrt(self.max_pixels / (width * height)))
            width, height = max(1, round(width * scale)), max(1, round(height * scale))
            # Rounding a thin picture's sides may lengthen it past the limit that its full size keeps.
            width, height = min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)
        return _fixed_point(self, (width, height))

    def grid(self, size: Size) -> tuple[int, int, int]:
        """(t, h, w) in patches of the fitted picture."""
        width, height = self.fit(size)
        return 1, height // self.patch, width // self.patch

    def tokens(self, size: Size) -> int:
        """Tokens of the language model that a picture of this size costs."""
        width, height = self.fit(size)
        return (width // self.factor) * (height // self.factor)


@lru_cache(maxsize=4096)
def _fixed_point(spec: VisionSpec, size: Size) -> Size:
    """Repeat the rule until it changes nothing; in a budget too narrow for that, the smallest size of its cycle."""
    seen: list[Size] = []
    size = _smart_resize(spec, size)
    while size not in seen:
        seen.append(size)
        size = _smart_resize(spec, size)
    return min(seen[seen.index(size) :], key=lambda s: (s[0] * s[1], s))


def _smart_resize(spec: VisionSpec, size: Size) -> Size:
    """One pass of Qwen's rule; where it would leave the budget or the aspect limit, the longer side gives way."""
    (w, h), f = size, spec.factor
    width, height = round(w / f) * f, round(h / f) * f
    if width * height > spec.max_pixels:
        shrink = math.sqrt(w * h / spec.max_pixels)
        width, height = math.floor(w / shrink / f) * f, math.floor(h / shrink / f) * f
    elif width * height < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / (w * h))
        width, height = math.ceil(w * grow / f) * f, math.ceil(h * grow / f) * f
    width, height = max(f, width), max(f, height)
    short = min(width, height)
    longest = min(max(width, height), max(short, spec.max_pixels // short // f * f), MAX_ASPECT * short)
    return (longest, short) if width > height else (short, longest)
