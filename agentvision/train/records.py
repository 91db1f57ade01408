"""What a run says of itself while it trains: metrics, events, trajectories, alarms, and a line on the terminal.

Files are the first rank's. The others have `Records` too, which write none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from agentvision.engine.ranks import rank, ranks, told_by_all
from agentvision.images import ImageStore
from agentvision.journal import Journal
from agentvision.recipe import Recipe
from agentvision.tracking import Tracker, flatten, read_metrics
from agentvision.train.alarms import Alarm, Watch
from agentvision.train.collect import ScoredGroup
from agentvision.train.progress import StepProgress
from agentvision.types import Trajectory


@dataclass(slots=True)
class Records:
    """`tracker`, `journal` and `watch` are None on ranks other than the first."""

    progress: StepProgress
    tracker: Tracker | None = None
    journal: Journal | None = None
    watch: Watch | None = None
    """Sounds the recipe's alarms."""
    trajectories_every: int = 0
    """Steps; 0: no trajectories."""
    ringing: Sequence[Alarm] = ()
    """Those that begin with the step that was recorded last."""

    @classmethod
    def open(cls, out: Path, recipe: Recipe, *, done: int = 0, resume: bool = False, quiet: bool = False) -> Records:
        """Those of the run in `out`, of which `done` steps are done; with `resume`, what it says of later ones is dropped.

        Raises `RunError` when the folder cannot be written.
        """
        first = rank() == 0
        progress = StepProgress(recipe.name, total=recipe.trainer.steps, done=done, quiet=quiet or not first)
        every = recipe.tracking.trajectories_every
        if not first:
            return cls(progress, trajectories_every=every)
        again_from = done + 1 if resume else None
        tracker = Tracker.open(out, recipe, resume_step=again_from)
        can_call = bool(recipe.env.tools) and recipe.env.max_turns > 1
        return cls(
            progress,
            tracker,
            Journal(out, rewind_to=again_from),
            Watch(recipe.alarms, tools=can_call, past=read_metrics(out)),
            every,
        )

    def event(self, name: str, **fields: Any) -> None:
        """What happens between steps, with the time."""
        if self.tracker is not None:
            self.tracker.event(name, **fields)

    def shows(self, step: int) -> bool:
        """Whether the trajectories of a step are written, with their images."""
        return self.trajectories_every > 0 and (step - 1) % self.trajectories_every == 0

    def step(self, metrics: dict[str, Any], groups: Sequence[ScoredGroup], store: ImageStore) -> None:
        """One step that is done (`metrics["step"]`): its numbers, its trajectories where it is their turn, its alarms."""
        if self.tracker is None:
            return
        step = metrics["step"]
        if self.shows(step):
            self.trajectories((t for s in groups for t in s.group.trajectories), step=step, store=store)
            self.tracker.rollouts(step, [scored.group for scored in groups], store)
        self.tracker.step(metrics)
        self.progress.step(metrics)
        self.ringing = self.watch.observe(flatten(metrics)) if self.watch is not None else ()
        for alarm in self.ringing:
            self.tracker.alarm(alarm.name, alarm.text, step=alarm.step, stops=alarm.stops)
            self.progress.say(f"alarm {alarm.name} at step {alarm.step}: {alarm.text}")

    def trajectories(self, trajectories: Iterable[Trajectory], *, step: int, store: ImageStore) -> None:
        """Whole, with their images."""
        if self.journal is not None:
            self.journal.append(list(trajectories), step=step, store=store)

    def close(self, *, failed: bool = False) -> None:
        if self.journal is not None:
            self.journal.close()
        if self.tracker is not None:
            self.tracker.close(failed=failed)


def groups_of_all_ranks(groups: Sequence[ScoredGroup], store: ImageStore | None) -> list[ScoredGroup]:
    """Everybody's groups; where a `store` is given, on the first rank with their images in it."""
    if ranks() == 1:
        return list(groups)
    images: dict[str, Image] = {}
    if store is not None and rank() > 0:
        keys = {
            key for s in groups for t in s.group.trajectories for key in (*t.originals, *(v.image for v in t.views))
        }
        images = {key: store.get(key) for key in keys}
    told = told_by_all((list(groups), images))
    if store is not None and rank() == 0:
        for _, theirs in told:
            for image in theirs.values():
                store.add(image)
    return [scored for theirs, _ in told for scored in theirs]
