"""Texts of models, tools and plug-ins on their way to a terminal."""

from __future__ import annotations

_JOINERS = "\u200c\u200d"
"""They shape letters and emoji, and cannot do more."""


def printable(text: str) -> str:
    """The text without control characters, by which whoever wrote it could steer the terminal."""
    return "".join(c if c in "\n\t" or c in _JOINERS or c.isprintable() else "�" for c in text)
