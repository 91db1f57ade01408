"""What goes to a terminal: texts of models, tools, data and plug-ins, and how far a command has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_JOINERS = "\u200c\u200d"
"""They shape letters and emoji, and cannot do more."""


def printable(text: str) -> str:
    """The text without control characters, by which whoever wrote it could steer the terminal."""
    return "".join(c if c in "\n\t" or c in _JOINERS or c.isprintable() else "�" for c in text)


def progress(*, quiet: bool = False) -> Progress:
    """A bar on stderr; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal)
