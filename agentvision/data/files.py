"""Questions from files and from the Hugging Face Hub.

`files` reads JSON lines, JSON, CSV, TSV, Parquet, Arrow, and folders that `datasets` wrote or can read; `{split}` in
the path stands for the split's name. `hub` reads a data set by its id, from the Hub or from its cache. Both give `Rows`,
which see. The `datasets` library is imported when a format needs it; no code of a data set is ever run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from agentvision.data import arrow
from agentvision.data.rows import HeldOut, Layout, Rows, Table
from agentvision.data.text import CsvFile, JsonFile, JsonlFile
from agentvision.errors import DataError, suggest
from agentvision.recipe.dataset import Fields

_PLAIN = Layout()
_USUAL = Fields()


def files(
    *,
    path: str,
    split: str = "train",
    fields: Fields = _USUAL,
    root: str | None = None,
    holdout: float | None = None,
) -> Rows:
    """Questions in a local file or folder. Pictures named by path lie under `root` (default: beside the file).

    `holdout` divides what is there (of several splits, `train`) anew: that share for `test`, the rest for `train` (see
    `HeldOut`). Raises `DataError` when there is no such file, or it is not what its name says.
    """
    return local(path, split, fields, root=root, holdout=holdout)


def hub(
    *,
    path: str,
    split: str = "train",
    fields: Fields = _USUAL,
    name: str | None = None,
    revision: str | None = None,
    holdout: float | None = None,
) -> Rows:
    """Questions in a data set of the Hugging Face Hub. `name` is its configuration, `revision` a branch, tag or commit.

    `holdout` is as in `files`. Raises `DataError` when it cannot be reached or has no such split.
    """
    return remote(path, split, fields, name=name, revision=revision, holdout=holdout)


def local(
    path: str, split: str, fields: Fields, *, root: str | None, holdout: float | None, layout: Layout = _PLAIN
) -> Rows:
    """What `files` reads, in a layout of its own."""
    held_out, split = _held_out(holdout, split)
    place = Path(path.replace("{split}", split)).expanduser()
    if not place.exists():
        near = [other.name for other in place.parent.iterdir()] if place.parent.is_dir() else []
        raise DataError(f"there is no file or folder {str(place)!r}.{suggest(place.name, near)}")
    follows_split = "{split}" in path
    if place.is_dir():
        folder = arrow.Folder.open(place)
        table: Table = folder.table(split)
        follows_split = follows_split or None not in folder.splits
    elif place.suffix in _READERS:
        table = _READERS[place.suffix](place)
    else:
        raise DataError(f"{str(place)!r} is none of {', '.join(sorted(_READERS))}, and no folder")
    pictures = Path(root).expanduser() if root is not None else place if place.is_dir() else place.parent
    try:
        return Rows(table, fields, root=pictures, layout=layout, held_out=held_out, follows_split=follows_split)
    except DataError as error:
        raise DataError(f"{str(place)!r}: {error}") from None


def remote(
    path: str,
    split: str,
    fields: Fields,
    *,
    name: str | None,
    revision: str | None,
    holdout: float | None,
    layout: Layout = _PLAIN,
) -> Rows:
    """What `hub` reads, in a layout of its own."""
    held_out, split = _held_out(holdout, split)
    table = arrow.remote(path, name=name, split=split, revision=revision)
    try:
        return Rows(table, fields, root=Path(), layout=layout, held_out=held_out)
    except DataError as error:
        raise DataError(f"{path!r}: {error}") from None


def _held_out(holdout: float | None, split: str) -> tuple[HeldOut | None, str]:
    """What to keep, and of which of the stored splits."""
    return (None, split) if holdout is None else (HeldOut(holdout, split), "train")


_Reader: TypeAlias = Callable[[Path], Table]
_READERS: dict[str, _Reader] = {
    ".jsonl": JsonlFile,
    ".json": JsonFile,
    ".csv": CsvFile,
    ".tsv": CsvFile,
    ".parquet": arrow.parquet,
    ".arrow": arrow.arrow,
}
