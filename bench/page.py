"""The page of results: each command owns one section of docs/results.md and writes only that."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"


def write_section(name: str, text: str, *, page: Path = PAGE) -> None:
    """Put `text` between `<!-- NAME -->` and `<!-- /NAME -->`; raises `ValueError` when the page has no such section."""
    whole = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = whole.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page}: no section {begin} … {end}")
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}", encoding="utf-8")
