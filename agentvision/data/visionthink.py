"""VisionThink's data sets as they are stored: a local folder or file, or an id on the Hub.

A row names the size at which its picture is to be seen first, `info.tgt_width` × `info.tgt_height`; in full it has twice
these sides. A row that names none has its picture's area brought between 512² and 2048² pixels. Either way the first view
has half of each side of the whole, so all a sample needs is its picture at full size (`types.Resized`, made when an episode
begins), and `env.first_view.scale: 0.5` does the rest: the same rows serve recipes that show the whole at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentvision.data.files import local, remote
from agentvision.data.rows import Layout, Rows
from agentvision.geometry import Size
from agentvision.recipe.dataset import Fields
from agentvision.types import ImageSource, Resized, Sample

FIELDS = Fields(
    question=("problem",),
    images=("images",),
    answer=("original_answer", "solution"),
    id=("doc_id",),
    meta=("data_source", "info", "reformat_answers"),
)
MIN_PIXELS, MAX_PIXELS = 512**2, 2048**2
_NEEDS_ORIGINAL = {"open_source_require_high": True, "open_source_no_require_high": False}
"""What `data_source` says of the halves of Smart-Train."""


def visionthink(
    *,
    path: str,
    split: str = "train",
    fields: Fields = Fields(),  # noqa: B008
    root: str | None = None,
    holdout: float | None = None,
    name: str | None = None,
    revision: str | None = None,
) -> Rows:
    """Questions in VisionThink's schema. `fields` that a recipe leaves at their defaults are the schema's own.

    `root` is for what lies on this machine (see `files`), `name` and `revision` for the Hub (see `hub`).
    A sample's `meta["needs_original"]` is what its `data_source` says, where it says it.
    """
    fields = FIELDS if fields == Fields() else fields
    if Path(path.replace("{split}", split)).expanduser().exists():
        return local(path, split, fields, root=root, holdout=holdout, layout=VisionThink())
    return remote(path, split, fields, name=name, revision=revision, holdout=holdout, layout=VisionThink())


class VisionThink(Layout):
    """The sizes of pictures, and which questions need the original."""

    columns = ("info",)

    def problem(self, row: Mapping[str, Any]) -> str:
        try:
            full_size(row)
        except ValueError as error:
            return str(error)
        return ""

    def complete(self, sample: Sample, row: Mapping[str, Any]) -> Sample:
        size = full_size(row)
        needs = _NEEDS_ORIGINAL.get(row.get("data_source") or "")
        meta = sample.meta if needs is None else {**sample.meta, "needs_original": needs}
        return replace(sample, images=tuple(_resized(image, size) for image in sample.images), meta=meta)


def full_size(row: Mapping[str, Any]) -> Size | None:
    """Twice the target sides, None where the row names none. Raises `ValueError`, its text the same for all rows."""
    info = row.get("info")
    if not info:
        return None
    if not isinstance(info, Mapping):
        raise ValueError("info is not a map")
    sides = (info.get("tgt_width"), info.get("tgt_height"))
    if sides == (None, None):
        return None
    width, height = (side if isinstance(side, int) and not isinstance(side, bool) else 0 for side in sides)
    if width < 1 or height < 1:
        raise ValueError("info.tgt_width and info.tgt_height are not both whole numbers above 0")
    if width * height > MAX_PIXELS:
        raise ValueError(f"the target size has more than {MAX_PIXELS:,} pixels")
    return 2 * width, 2 * height


def _resized(image: ImageSource, size: Size | None) -> Resized:
    return Resized(image, size) if size else Resized(image, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
