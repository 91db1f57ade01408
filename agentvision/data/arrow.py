"""Tables that the `datasets` library reads: Arrow, Parquet, `save_to_disk` folders, the Hub.

Arrow files are mapped, not loaded. A light pass learns of a picture only that it is there and, when asked, its length and
its last bytes; a row's pictures are copied out of the map when that row is asked for, and decoded later still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from agentvision.data.rows import Unread
from agentvision.errors import DataError, suggest

_BATCH_ROWS = 64
"""Rows looked at together; those of a shuffled data set are copied for it, pictures included."""
_TAIL_BYTES = 64


class ArrowTable:
    """A `datasets.Dataset`, read as Arrow."""

    unit: ClassVar = "row"

    def __init__(self, dataset: Any) -> None:
        self._data = dataset.with_format("arrow")
        self.columns: list[str] = list(dataset.column_names)

    def light_rows(
        self, columns: Sequence[str], images: Sequence[str], *, tails: bool = False
    ) -> Iterator[Mapping[str, Any]]:
        wanted = self._data.select_columns([*columns, *images])
        for batch in wanted.iter(_BATCH_ROWS):
            texts = batch.select(list(columns)).to_pylist() if columns else [{} for _ in range(batch.num_rows)]
            # chunk by chunk: joining them would copy every picture
            pictures = {c: [cell for part in batch.column(c).chunks for cell in _light(part, tails)] for c in images}
            for i, row in enumerate(texts):
                yield row | {column: cells[i] for column, cells in pictures.items()}

    def row(self, index: int) -> Mapping[str, Any]:
        return self._data[index].to_pylist()[0]

    def number(self, index: int) -> int:
        return index + 1


def _light(array: Any, tails: bool) -> list[Any]:
    """The cells of a picture column, with `Unread` in the place of encoded pictures: their bytes stay on disk."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, there = array.type, array.is_valid().to_pylist()
    if pa.types.is_struct(kind):
        fields = {kind.field(i).name for i in range(kind.num_fields)}
        inside = _light(array.field("bytes"), tails) if "bytes" in fields else [None] * len(array)
        paths = array.field("path").to_pylist() if "path" in fields else [None] * len(array)
        return [(cell or path) if ok else None for ok, cell, path in zip(there, inside, paths, strict=True)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        cells = iter(_light(array.flatten(), tails))
        lengths = pc.call_function("list_value_length", [array]).to_pylist()
        return [list(islice(cells, length or 0)) for length in lengths]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        sizes = pc.call_function("binary_length", [array]).to_pylist()
        ends = [b""] * len(array)
        if tails:
            ends = pc.call_function("binary_slice", [array], pc.SliceOptions(start=-_TAIL_BYTES)).to_pylist()
        return [Unread(b"%d:%b" % (size, end)) if size else None for size, end in zip(sizes, ends, strict=True)]
    return array.to_pylist()


def parquet(path: Path) -> ArrowTable:
    from datasets import Dataset

    return ArrowTable(guarded(str(path), lambda: Dataset.from_parquet(str(path))))


def arrow(path: Path) -> ArrowTable:
    from datasets import Dataset

    return ArrowTable(guarded(str(path), lambda: Dataset.from_file(str(path))))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that `save_to_disk` wrote, else whatever `load_dataset` makes of it. `splits` has None for a folder that
    holds one data set and no splits."""

    path: Path
    splits: Mapping[str | None, Any]

    @classmethod
    def open(cls, path: Path) -> Folder:
        from datasets import DatasetDict, load_dataset, load_from_disk

        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        found = guarded(str(path), lambda: (load_from_disk if saved else load_dataset)(str(path)))
        return cls(
            path, {str(name): data for name, data in found.items()} if isinstance(found, DatasetDict) else {None: found}
        )

    def table(self, split: str) -> ArrowTable:
        """The split's table. Raises `DataError` when there are splits and it is none of them."""
        found = self.splits.get(split, self.splits.get(None))
        if found is None:
            raise DataError(f"{str(self.path)!r} has no split {split!r}.{suggest(split, map(str, self.splits))}")
        return ArrowTable(found)


def remote(path: str, *, name: str | None, split: str, revision: str | None) -> ArrowTable:
    from datasets import load_dataset

    return ArrowTable(guarded(path, lambda: load_dataset(path, name=name, split=split, revision=revision)))


def guarded(name: str, read: Callable[[], Any]) -> Any:
    """What a reader gives; whatever it raises is told as one line about the data set."""
    try:
        return read()
    except (Exception, RecursionError) as error:
        lines = str(error).strip().splitlines()
        raise DataError(f"{name!r} cannot be read ({type(error).__name__}): {lines[0] if lines else ''}") from error
