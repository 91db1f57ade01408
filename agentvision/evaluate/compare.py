"""Results of several evaluations side by side, as rows for a page or a markdown table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentvision.errors import RunError
from agentvision.run_folder import RESULTS

PROPORTIONS = {
    "accuracy": "accuracy",
    "accuracy_easy": "accuracy, first view is enough",
    "accuracy_hard": "accuracy, needs the original",
    "format": "well formed",
    "call_rate": "call rate",
    "call_rate_easy": "call rate, first view is enough",
    "call_rate_hard": "call rate, needs the original",
    "visual_share_additive_weighted": "visual tokens against full, additive",
    "visual_share_replacement_weighted": "visual tokens against full, replacement",
}
AMOUNTS = {
    "visual_tokens_full": "visual tokens, full resolution",
    "visual_tokens_additive": "visual tokens, additive",
    "visual_tokens_replacement": "visual tokens, replacement",
    "text_tokens": "text tokens read",
    "output_tokens": "tokens written",
    "turns": "turns",
    "seconds": "seconds in all",
}


@dataclass(frozen=True, slots=True)
class Result:
    """One `results.json`: its name in a table, and its values."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A measure over several results: what stands in each cell, and its interval (empty where there is none)."""

    label: str
    cells: tuple[tuple[str, str], ...]


def read_results(paths: Iterable[Path | str]) -> list[Result]:
    """Read `results.json` files, or the directories that hold them; each is named by its directory.

    Raises:
        RunError: a file is missing or is not the result of an evaluation.
    """
    results: list[Result] = []
    for given in paths:
        path = Path(given) / RESULTS if Path(given).is_dir() else Path(given)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot read results: {error}") from error
        if not isinstance(values, dict) or "accuracy" not in values:
            raise RunError(
                f"{path}: not the results of an evaluation; it needs 'accuracy', as `agentvision eval` writes it"
            )
        results.append(Result(path.resolve().parent.name, values))
    return results


def labelled_rows(results: Sequence[Result]) -> list[Row]:
    """The measures that at least one result has, proportions in percent, with their 95 % intervals."""
    rows = [Row("questions", tuple((f"{result.values.get('n', '–')}", "") for result in results))] if results else []
    for names, form in ((PROPORTIONS, _percent), (AMOUNTS, _amount)):
        for name, label in names.items():
            if any(result.values.get(name) is not None for result in results):
                rows.append(Row(label, tuple(_cell(result.values, name, form) for result in results)))
    return rows


def markdown_table(results: Sequence[Result], *, measures: Sequence[str] = ()) -> str:
    """A markdown table with a column a result and a row a measure; `measures` picks rows by their key in the file."""
    labels = {**PROPORTIONS, **AMOUNTS}
    wanted = {labels.get(name, name) for name in measures}
    lines = [
        "| | " + " | ".join(result.name for result in results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for row in labelled_rows(results):
        if not wanted or row.label in wanted:
            cells = [f"{value} ({interval})" if interval else value for value, interval in row.cells]
            lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Mapping[str, Any], name: str, form: Any) -> tuple[str, str]:
    value, interval = values.get(name), values.get(f"{name}_ci")
    if value is None:
        return "–", ""
    return form(value), "" if not interval else f"{form(interval[0])} to {form(interval[1])}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _amount(value: float) -> str:
    return f"{value:,.1f}"
