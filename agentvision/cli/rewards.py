"""`agentvision rewards`: what there is, and what it says to an answer or to the groups of a run."""

from __future__ import annotations

import inspect
import statistics
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from agentvision.cli._options import named_values
from agentvision.cli._terminal import printable
from agentvision.errors import PluginError, RecipeError, RunError

if TYPE_CHECKING:
    from agentvision.rewards import WeightedPart
    from agentvision.types import Group, Score, Trajectory

app = cyclopts.App(name="rewards", help="List rewards, and try one on an answer or a run.")

_PART = "rewards.0."
"""How errors of the composition begin, which here has one part."""


@app.command(name="list")
def list_rewards() -> None:
    """List the rewards that can be named in a recipe with their settings, and those that are installed but broken."""
    from agentvision import plugins

    discovered = plugins.discover("rewards")
    width = max(map(len, discovered.found), default=0)
    for name, found in discovered.found.items():
        kind, description, settings = _described(found)
        print(printable(f"{name:<{width}}  {kind:<10}  {description}"))
        if settings:
            print(f"{'':<{width}}  {'':<10}  {settings}")
    for name, reason in discovered.broken.items():
        print(printable(f"broken: {name}: {reason}"))


@app.command(name="try")
def try_reward(
    reward: str,
    *arguments: str,
    question: str | None = None,
    truth: str | None = None,
    answer: str | None = None,
    step: int | None = None,
    groups: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=0))] = 4,
) -> None:
    """Score one answer, or the rollouts that a run or an evaluation wrote down, with one reward.

    A reward that asks whether an answer is right is told what was found when the run was scored.

    Parameters
    ----------
    reward
        Its name, 'package.module:name' or './file.py:name'.
    arguments
        A run's folder (or its trajectories.jsonl), and the reward's settings as name=value, written as in a recipe.
    question
        What was asked.
    truth
        The right answer.
    answer
        The answer to score, as a model would put it between <answer> and </answer>.
    step
        The step of the run; by default the last that was written down.
    groups
        Show at most so many groups; the last line is about all of them.
    """
    recordings = [text for text in arguments if "=" not in text or Path(text).exists()]
    part = _build(reward, [text for text in arguments if text not in recordings])
    told = {"--question": question, "--truth": truth, "--answer": answer}
    if not recordings:
        _try_answer(part, told, step=step)
        return
    if len(recordings) > 1:
        raise RunError(f"one run at a time, not {recordings}; a setting is name=value")
    if given := [name for name, value in told.items() if value is not None]:
        raise RunError(f"{', '.join(given)}: score an answer, or the run {recordings[0]!r}, not both")
    _try_recording(part, Path(recordings[0]), step=step, shown=groups)


def _try_answer(part: WeightedPart, told: dict[str, str | None], *, step: int | None) -> None:
    from agentvision._workers import run_sync
    from agentvision.types import Group, ParsedTurn, Sample, StopReason, Trajectory, Turn

    if part.group:
        raise PluginError(f"{part.name!r} scores groups: name the folder of a run (rewards try {part.name} runs/demo)")
    if told["--answer"] is None:
        raise PluginError("nothing to score: give --answer (with --question and --truth), or the folder of a run")
    if step is not None:
        raise PluginError("--step is of a run, and no run is named")
    answer = told["--answer"]
    trajectory = Trajectory(
        sample=Sample("command line", told["--question"] or "", answer=told["--truth"]),
        turns=(Turn(answer, ParsedTurn(answer=answer)),),
        messages=(),
        views=(),
        stop=StopReason.ANSWERED,
        answer=answer,
    )
    [[score]] = run_sync(lambda: _scores(part, [Group(trajectory.sample, (trajectory,))]))
    print(printable(_shown(score)))
    if not score.valid:
        sys.exit(1)


def _try_recording(part: WeightedPart, path: Path, *, step: int | None, shown: int) -> None:
    from agentvision._workers import run_sync

    step, groups = _recorded(path, step)
    columns = run_sync(lambda: _scores(part, groups))
    print(f"step {step}: {part.name} of {len(groups)} groups")
    for group, scores in list(zip(groups, columns, strict=True))[:shown]:
        print(f"\n{printable(group.sample.id)}  {group.sample.question!r}  truth {group.sample.answer!r}")
        for t, score in zip(group.trajectories, scores, strict=True):
            print(printable(f"  {_fate(t):<24}  {_shown(score)}"))
    scores = [score for column in columns for score in column]
    values = [score.value for score in scores if score.value is not None]
    spread = sum(len({s.value for s in column if s.valid}) > 1 for column in columns)
    mean = f"mean {statistics.fmean(values):.4g} ({min(values):.4g} to {max(values):.4g}), " if values else ""
    print(f"\n{mean}{len(scores) - len(values)} of {len(scores)} invalid; scores differ within {spread} groups")


def _build(reward: str, settings: Sequence[str]) -> WeightedPart:
    from agentvision.rewards._config import parts_from_config

    try:
        [part] = parts_from_config([{reward: named_values(settings)}])
    except RecipeError as error:
        raise RecipeError("\n".join(line.removeprefix(_PART) for line in str(error).splitlines())) from error
    return part


async def _scores(part: WeightedPart, groups: Sequence[Group]) -> list[list[Score]]:
    try:
        return [await part.score(group) for group in groups]
    finally:
        await part.close()


def _recorded(path: Path, step: int | None) -> tuple[int, list[Group]]:
    """The groups of one step of a journal: the one that was asked for, or the last."""
    from agentvision.journal import in_groups, read_trajectories
    from agentvision.run_folder import TRAJECTORIES

    if path.is_file() and path.name != TRAJECTORIES:
        raise RunError(f"{path}: name the folder of a run or evaluation, or its {TRAJECTORIES}")
    found: tuple[int, list[Group]] | None = None
    steps: list[int] = []
    entries = read_trajectories(path.parent if path.is_file() else path)
    for number, pairs in groupby(in_groups(entries), key=lambda pair: pair[0]):
        steps.append(number)
        if step is None or number == step:
            found = number, [group for _, group in pairs]
    if found is None:
        if not steps:
            raise RunError(
                f"{path}: no trajectories were written there; tracking.trajectories_every of its run says how often"
            )
        raise RunError(f"{path}: no trajectory of step {step} stands there; it has steps {min(steps)} to {max(steps)}")
    return found


def _described(found: Any) -> tuple[str, str, str]:
    """(what it scores, its docstring's first line, its settings) of a plug-in."""
    from agentvision.rewards._config import settings_of
    from agentvision.rewards.base import FunctionReward, takes_group

    function = found.function if isinstance(found, FunctionReward) else found
    lines = (inspect.getdoc(function) or "").splitlines()
    shown = [_setting(name, parameter) for name, parameter in settings_of(found).items()]
    return "group" if takes_group(found) else "trajectory", lines[0] if lines else "", ", ".join(shown)


def _setting(name: str, parameter: inspect.Parameter) -> str:
    from agentvision.recipe.tree import to_yaml

    if parameter.kind is parameter.VAR_KEYWORD:
        return "…"
    if parameter.default is parameter.empty:
        return f"{name} (required)"
    try:
        return f"{name}: {to_yaml(parameter.default)}"
    except TypeError:
        return f"{name}: {parameter.default!r}"


def _fate(t: Trajectory) -> str:
    """What became of a rollout, in a few words."""
    answer = t.stop.value if t.answer is None else repr(t.answer if len(t.answer) <= 20 else f"{t.answer[:19]}…")
    verdict = {True: "right", False: "wrong", None: "unjudged"}[t.correct]
    return f"{answer} {verdict}{', looked' if t.looked_closer else ''}"


def _shown(score: Score) -> str:
    value = "invalid" if score.value is None else f"{score.value:.4g}"
    return f"{value}  ({score.reason})" if score.reason else value
