"""What a run says about itself: `metrics.jsonl` always, wandb when the recipe asks.

`metrics.jsonl` holds one flat JSON object a step, with null for NaN and infinity;
`events.jsonl` holds what happens between steps (started, saved, skipped a step, stopped) with the time. A run that
resumes from step k drops the rows of step k and later, because they will be made again. wandb gets the same numbers and
a table of rollouts with their images; it may be slow, unreachable or broken without the run noticing more than a
warning. Trajectories in full are the journal's affair, charts the report's.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agentvision._json_values import encode_any
from agentvision.errors import RunError
from agentvision.jsonl import JsonLines, keep_lines, read_lines
from agentvision.run_folder import EVENTS, METRICS, WANDB
from agentvision.types import Group, Trajectory

if TYPE_CHECKING:
    from agentvision.images import ImageStore
    from agentvision.recipe import Recipe

log = logging.getLogger(__name__)

_SECRET_WORDS = ("key", "token", "secret", "password", "authorization")
_WANDB_TIMEOUT_S = 60


class Tracker:
    """Writes the metrics and events of one run; made by `Tracker.open`, closed once."""

    def __init__(self, directory: Path, *, wandb: _Wandb | None = None) -> None:
        self.directory = directory
        self._wandb = wandb
        self._metrics, self._events = JsonLines(directory / METRICS), JsonLines(directory / EVENTS)

    @classmethod
    def open(cls, out: Path | str, recipe: Recipe, *, resume_step: int | None = None) -> Tracker:
        """Open the tracker of the run in `out`; `resume_step` is the first step that will be made (again).

        Raises:
            RunError: the directory cannot be written. wandb never raises.
        """
        directory = Path(out)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / METRICS
            if resume_step is not None and path.exists():
                keep_lines(path, [row for _, row in read_lines(path) if row.get("step", 0) < resume_step])
            tracker = cls(directory)
        except OSError as error:
            raise RunError(f"{directory}: cannot write metrics here: {error}") from error
        tracker._wandb = _Wandb.start(directory, recipe, report=tracker.event)
        tracker.event("resumed" if resume_step is not None else "started", step=resume_step or 0)
        return tracker

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of one step; `metrics["step"]` counts it. Numbers that are not finite become null.

        Nested mappings are flattened with a slash: `{"stop": {"answered": .9}}` is written as `stop/answered`.
        """
        row = flatten(metrics)
        if not isinstance(row.get("step"), int):
            raise ValueError(f"metrics need an integer 'step', not {row.get('step')!r}")
        self._metrics.append(_strict(row))
        if self._wandb is not None:
            self._wandb.log(row, step=row["step"])

    def event(self, name: str, /, **fields: Any) -> None:
        """Write something that happened, with the time in seconds since the epoch."""
        self._events.append(_strict({"time": round(time.time(), 3), "event": name, **flatten(fields)}))

    def alarm(self, name: str, text: str, *, step: int, stops: bool) -> None:
        """Write that an alarm begins to ring, and have wandb tell whoever it tells."""
        self.event("alarm", step=step, name=name, text=text, stops=stops)
        if self._wandb is not None:
            self._wandb.alert(f"{name} at step {step}", text)

    def rollouts(self, step: int, groups: Sequence[Group], store: ImageStore) -> None:
        """Show some rollouts of a step, with their images, where the recipe asked for wandb; otherwise nothing.

        This does not write the journal; `Journal.append` does.
        """
        if self._wandb is not None:
            self._wandb.table(step, [t for group in groups for t in group.trajectories], store)

    def close(self, *, failed: bool = False) -> None:
        """Close the files; wandb gets a minute to send what it has."""
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))
            self._wandb = None
        self._metrics.close()
        self._events.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(failed=kind is not None)


def read_metrics(directory: Path | str) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, in order; a torn last line is skipped.

    Raises:
        RunError: there is no such file, or a line before the last is damaged.
    """
    return [row for _, row in read_lines(Path(directory) / METRICS)]


def read_events(directory: Path | str) -> list[dict[str, Any]]:
    """The rows of a run's `events.jsonl`; empty when there is none."""
    path = Path(directory) / EVENTS
    return [row for _, row in read_lines(path)] if path.exists() else []


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level, keys joined with a slash."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _strict(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _finite(value) for key, value in row.items()}


def _finite(value: Any) -> Any:
    """A JSON value: NaN and infinity are null, numpy and torch scalars are numbers."""
    if value is None or isinstance(value, (bool, int, str)):
        return encode_any(value)
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


class _Wandb:
    """A wandb run that cannot hurt: the first failure is reported, and nothing is sent from then on."""

    _run: Any

    def __init__(self, module: Any, run: Any, *, rollouts: int, report: Callable[..., None]) -> None:
        self._module, self._run, self._rollouts, self._report = module, run, rollouts, report

    @classmethod
    def start(cls, directory: Path, recipe: Recipe, *, report: Callable[..., None]) -> _Wandb | None:
        """Start (or, where the directory knows a run already, continue) a run as `recipe.tracking.wandb` says."""
        asked = recipe.tracking.wandb
        if asked is None:
            return None
        try:
            import wandb

            if asked.mode == "online" and not wandb.login(prompt=False, verify=False):
                _warn(report, "nobody is logged in: run `wandb login`, or set tracking.wandb.mode=offline")
                return None
            # wandb stages a table's images under the home directory: an offline run that is moved would lose them.
            os.environ.setdefault("WANDB_DATA_DIR", str(directory.absolute() / "wandb"))
            known = directory / WANDB
            run_id = json.loads(known.read_text())["id"] if known.exists() else secrets.token_hex(4)
            run = wandb.init(
                project=asked.project,
                entity=asked.entity,
                group=asked.group,
                tags=asked.tags,
                mode=asked.mode,
                name=f"{recipe.name}-{directory.name}",
                id=run_id,
                resume="allow",
                dir=str(directory),
                config=redact(recipe.model_dump(mode="json")),
                settings=wandb.Settings(init_timeout=_WANDB_TIMEOUT_S, console="off", disable_git=True),
            )
            known.write_text(json.dumps({"id": run_id}))
        except Exception as error:
            _warn(report, type(error).__name__)
            return None
        return cls(wandb, run, rollouts=asked.rollouts, report=report)

    def log(self, row: Mapping[str, Any], *, step: int) -> None:
        values = {key: _finite(value) for key, value in row.items()}
        self._guarded(lambda: self._run.log({k: v for k, v in values.items() if v is not None}, step=step))

    def alert(self, title: str, text: str) -> None:
        self._guarded(lambda: self._run.alert(title=title, text=text, level="WARN"))

    def table(self, step: int, trajectories: Sequence[Trajectory], store: ImageStore) -> None:
        """An even choice of a step's trajectories: enough to read, little enough to upload."""
        if self._rollouts == 0:
            return
        shown = trajectories[:: max(1, len(trajectories) // self._rollouts)][: self._rollouts]
        self._guarded(lambda: self._run.log({"rollouts": self._rows(shown, store)}, step=step))

    def finish(self, *, exit_code: int) -> None:
        """Send the rest; a network that is gone must not keep the run from ending."""

        def end() -> None:
            self._guarded(lambda: self._run.finish(exit_code=exit_code))

        thread = threading.Thread(target=end, daemon=True, name="wandb-finish")
        thread.start()
        thread.join(_WANDB_TIMEOUT_S)
        if thread.is_alive():
            log.warning("wandb did not finish within %d s; `wandb sync` sends what is missing", _WANDB_TIMEOUT_S)

    def _rows(self, trajectories: Sequence[Trajectory], store: ImageStore) -> Any:
        most = max((len(t.views) for t in trajectories), default=0)
        views = [f"view {number + 1}" for number in range(most)]
        rest = ["question", "turns", "answer", "truth", "reward", "correct", "called", "stop"]
        table = self._module.Table(columns=["sample", *views, *rest])
        for t in trajectories:
            images = [
                self._module.Image(store.get(v.image), caption=f"{v.source} {v.size[0]}x{v.size[1]}") for v in t.views
            ]
            turns = "\n---\n".join(turn.text for turn in t.turns)
            facts = [
                t.sample.question,
                turns,
                t.answer,
                t.sample.answer,
                t.reward,
                t.correct,
                t.looked_closer,
                t.stop.value,
            ]
            table.add_data(t.sample.id, *images, *[None] * (most - len(images)), *facts)
        return table

    def _guarded(self, call: Callable[[], object]) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:
            self._run = None
            _warn(self._report, type(error).__name__)


def _warn(report: Callable[..., None], why: str) -> None:
    """Say once that wandb is off, and why: of an error its kind alone, since its text may hold a key."""
    log.warning("wandb is off for the rest of this run (%s); metrics.jsonl has everything", why)
    report("wandb_off", error=why)


def redact(value: Any) -> Any:
    """A copy of a JSON value in which texts whose key is named like a credential are masked."""
    if isinstance(value, Mapping):
        return {k: "***" if isinstance(v, str) and is_secret(str(k)) else redact(v) for k, v in value.items()}
    return [redact(item) for item in value] if isinstance(value, list) else value


def is_secret(name: str) -> bool:
    """Whether a setting of this name may hold a credential."""
    return any(word in name.lower().split("_") for word in _SECRET_WORDS)
