"""Questions from files and from the Hugging Face Hub.

`files` reads JSON lines, JSON, CSV, TSV, Parquet, Arrow, and folders that `datasets` wrote or can read; `{split}` in
the path stands for the split's name. `hub` reads a data set by its id. Both give `Rows`, which see. The `datasets`
library is imported when a format needs it; no code of a data set is ever run.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from agentvision.data.rows import UNREAD, Rows, Table
from agentvision.errors import DataError, suggest
from agentvision.recipe.schema import Fields

_ROOTLESS = Fields()
_BATCH_ROWS = 1000
_MAX_CELL = 32 * 1024 * 1024


def files(*, path: str, split: str = "train", fields: Fields = _ROOTLESS, root: str | None = None) -> Rows:
    """Questions in a local file or folder. Pictures named by path lie under `root` (default: beside the file).

    Raises `DataError` when there is no such file, or it is not what its name says.
    """
    place = Path(path.replace("{split}", split)).expanduser()
    if not place.exists():
        near = [other.name for other in place.parent.iterdir()] if place.parent.is_dir() else []
        raise DataError(f"there is no file or folder {str(place)!r}.{suggest(place.name, near)}")
    if place.is_dir():
        table: Table = _folder(place, split)
    elif place.suffix in _READERS:
        table = _READERS[place.suffix](place)
    else:
        raise DataError(f"{str(place)!r} is none of {', '.join(sorted(_READERS))}, and no folder")
    folder = Path(root).expanduser() if root is not None else place if place.is_dir() else place.parent
    return _rows(table, fields, folder, str(place))


def hub(
    *, path: str, split: str = "train", fields: Fields = _ROOTLESS, name: str | None = None, revision: str | None = None
) -> Rows:
    """Questions in a data set of the Hugging Face Hub. `name` is its configuration, `revision` a branch, tag or commit.

    Raises `DataError` when it cannot be reached or has no such split.
    """
    from datasets import load_dataset

    found = _guarded(path, lambda: load_dataset(path, name=name, split=split, revision=revision))
    return _rows(_ArrowTable(found), fields, Path(), path)


def _rows(table: Table, fields: Fields, root: Path, name: str) -> Rows:
    try:
        return Rows(table, fields, root=root)
    except DataError as error:
        raise DataError(f"{name!r}: {error}") from None


def _guarded(name: str, read: Callable[[], Any]) -> Any:
    """What a reader gives; whatever it raises is told as one line about the data set."""
    try:
        return read()
    except (Exception, RecursionError) as error:
        lines = str(error).strip().splitlines()
        raise DataError(f"{name!r} cannot be read ({type(error).__name__}): {lines[0] if lines else ''}") from error


# --- text -----------------------------------------------------------------------------------------------------------


class _ListTable:
    """Rows in memory; a string among them is the reason why that row is none."""

    def __init__(self, rows: Sequence[Mapping[str, Any] | str]) -> None:
        self._rows = rows
        self.columns = list(dict.fromkeys(key for row in rows if not isinstance(row, str) for key in row))

    def light_rows(self, columns: Sequence[str], images: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        return iter(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        if isinstance(row, str):
            raise ValueError(f"row {index} is none: {row}")
        return row


def _json_lines(path: Path) -> Table:
    lines = _guarded(str(path), path.read_bytes).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return _ListTable([_json_row(line) for line in lines if line.strip()])


def _json_row(line: bytes) -> Mapping[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return "not a line of JSON"
    return row if isinstance(row, dict) else "not a JSON object"


def _json(path: Path) -> Table:
    rows = _guarded(str(path), lambda: json.loads(path.read_text(encoding="utf-8-sig")))
    if not isinstance(rows, list):
        raise DataError(f"{str(path)!r} holds no JSON array of objects; one object a line goes by .jsonl")
    return _ListTable([row if isinstance(row, dict) else "not a JSON object" for row in rows])


def _csv(path: Path) -> Table:
    def read() -> list[Mapping[str, Any] | str]:
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))  # a data: URL is longer than the module's default
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True, delimiter="\t" if path.suffix == ".tsv" else ",")
            return [row if None not in row else "more cells than the header has" for row in rows]

    return _ListTable(_guarded(str(path), read))


# --- datasets -------------------------------------------------------------------------------------------------------


class _ArrowTable:
    """A `datasets.Dataset`, read as Arrow: pictures stay encoded, and a light pass leaves their bytes on disk."""

    def __init__(self, dataset: Any) -> None:
        self._data = dataset.with_format("arrow")
        self.columns: list[str] = list(dataset.column_names)

    def light_rows(self, columns: Sequence[str], images: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        wanted = self._data.select_columns([*columns, *images])
        for batch in wanted.iter(_BATCH_ROWS):
            texts = batch.select(list(columns)).to_pylist() if columns else [{} for _ in range(batch.num_rows)]
            pictures = {column: _light(batch.column(column)) for column in images}
            for i, row in enumerate(texts):
                yield row | {column: cells[i] for column, cells in pictures.items()}

    def row(self, index: int) -> Mapping[str, Any]:
        return self._data[index].to_pylist()[0]


def _light(column: Any) -> list[Any]:
    """The cells of a picture column, with `UNREAD` in the place of encoded pictures: their bytes are not touched."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    kind, there = array.type, array.is_valid().to_pylist()
    if pa.types.is_struct(kind):
        fields = {kind.field(i).name for i in range(kind.num_fields)}
        inside = _light(array.field("bytes")) if "bytes" in fields else [None] * len(array)
        paths = array.field("path").to_pylist() if "path" in fields else [None] * len(array)
        return [(cell or path) if ok else None for ok, cell, path in zip(there, inside, paths, strict=True)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        cells = iter(_light(array.flatten()))
        lengths = pc.call_function("list_value_length", [array]).to_pylist()
        return [list(islice(cells, length or 0)) for length in lengths]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [UNREAD if size else None for size in pc.call_function("binary_length", [array]).to_pylist()]
    return array.to_pylist()


def _parquet(path: Path) -> Table:
    from datasets import Dataset

    return _ArrowTable(_guarded(str(path), lambda: Dataset.from_parquet(str(path))))


def _arrow(path: Path) -> Table:
    from datasets import Dataset

    return _ArrowTable(_guarded(str(path), lambda: Dataset.from_file(str(path))))


def _folder(path: Path, split: str) -> Table:
    """A folder that `save_to_disk` wrote, else whatever `load_dataset` makes of it."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    read = load_from_disk if saved else load_dataset
    found = _guarded(str(path), lambda: read(str(path)))
    if isinstance(found, DatasetDict):
        if split not in found:
            raise DataError(f"{str(path)!r} has no split {split!r}.{suggest(split, map(str, found))}")
        found = found[split]
    return _ArrowTable(found)


_Reader: TypeAlias = Callable[[Path], Table]
_READERS: dict[str, _Reader] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
