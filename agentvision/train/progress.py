"""How training looks to a person: a live bar on a terminal, a plain line a step anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SHOWN = (
    ("reward", ".3f"),
    ("accuracy", ".2f"),
    ("call_rate", ".2f"),
    ("loss", ".3f"),
    ("entropy", ".3f"),
    ("samples_per_s", ".0f"),
)


class StepProgress:
    """Shows steps done of `total`, and within a step the trajectories done of those expected."""

    def __init__(
        self, title: str, *, total: int, done: int = 0, console: Console | None = None, quiet: bool = False
    ) -> None:
        self._console = console or Console(stderr=True)
        self._title, self._total, self._done, self._quiet = title, total, done, quiet
        self._live = self._console.is_terminal and not quiet
        self._started = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._steps = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> StepProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def rollouts(self, done: int) -> None:
        """So many trajectories of the step in progress are scored."""
        self._bar.update(self._steps, note=f"rollout {done}")

    def phase(self, name: str) -> None:
        self._bar.update(self._steps, note=name)

    def stage(self, note: str, count: int) -> None:
        """A stage before the first step is under way; a plain line for every fiftieth `count`."""
        self.phase(note)
        if not self._live and count % 50 == 0:
            self.say(f"{self._title} {note}")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A step is done."""
        self._done += 1
        shown = "  ".join(f"{name} {metrics[name]:{form}}" for name, form in _SHOWN if metrics.get(name) is not None)
        self._bar.update(self._steps, completed=self._done, note=shown)
        if not self._live and not self._quiet:
            elapsed = time.perf_counter() - self._started
            self.say(f"{self._title} {self._done}/{self._total}  {shown}  {elapsed:.0f} s")

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self._quiet:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)
