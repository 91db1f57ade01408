"""Easy and hard halves of a data set: what a policy answers from the first view, and what it answers only from the whole.

Each question is asked n times in one turn without tools, at the first view's resolution and in full (VisionThink, section on
data). Easy: right every time at both. Hard: right more often in full than at first by a margin, 6 of 8 in the paper.
Everything else teaches nothing about when to look, and is dropped and counted. The counts of each question are written
as they come, so a run that is cut off goes on where it stopped, to the same halves.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agentvision import build
from agentvision._workers import run_sync
from agentvision.data.write import write_samples
from agentvision.errors import DataError, RunError
from agentvision.images import ImageStore
from agentvision.jsonl import JsonLines, read_lines
from agentvision.policy import Policy
from agentvision.recipe import Recipe
from agentvision.rewards import Rewards
from agentvision.rollout import rollout_groups
from agentvision.seeds import seed_for
from agentvision.types import Group, Sample, StopReason, Trajectory

QUESTIONS, COUNTS, REPORT = "train.jsonl", "counts.jsonl", "split.json"
HARD_MARGIN = 6 / 8
"""The paper's margin, as a share of the times that a question is asked."""
_BLOCK = 32
"""Questions whose pictures are in memory together, and that a run which is cut off loses at most."""
_IN_FLIGHT = 64

Half: TypeAlias = Literal["easy", "hard"]
OnDone: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Counts:
    """How often a question was answered right, of `n` times each; `invalid` of the 2n answers have no verdict."""

    index: int
    low: int
    high: int
    invalid: int = 0
    bad_image: bool = False


@dataclass(frozen=True, slots=True)
class SplitReport:
    """How many questions fell where. `settings` is what they were asked with; `labels` compares with what the source
    knew, where it knew `needs_original`: (known, found) and how many."""

    questions: int
    easy: int
    hard: int
    written: int
    dropped: Mapping[str, int]
    settings: Mapping[str, Any]
    labels: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def half_of(counts: Counts, *, n: int, margin: int) -> Half | None:
    """The half that a question belongs to; None for what is dropped. An answer without a verdict is no wrong answer."""
    if counts.bad_image or counts.invalid:
        return None
    if counts.low == n and counts.high == n:
        return "easy"
    return "hard" if counts.high - counts.low >= margin else None


def split_questions(
    recipe: Recipe,
    questions: Sequence[Sample],
    out: Path,
    *,
    n: int = 8,
    margin: int | None = None,
    limit: int | None = None,
    balance: bool = False,
    policy: Policy | None = None,
    on_done: OnDone = lambda done, total: None,
) -> SplitReport:
    """Ask every question, and write the two halves into `out`, marked by `needs_original`, with a report.

    `policy` is the recipe's unless another is given (which stays open); `margin` the right answers that a hard question has
    more in full, of n (default: 6 of 8, in proportion); `limit` asks so many questions; `balance` cuts the
    larger half to the smaller's size. A folder in which this was begun with the same settings is continued.

    Raises:
        DataError: the folder holds the result already or was begun otherwise, the recipe has nothing to tell apart or
            no reward that judges correctness, or no question is easy or hard.
        RunError: the policy fails on every answer of a block.
    """
    margin = math.ceil(HARD_MARGIN * n) if margin is None else margin
    if n < 1 or not 1 <= margin <= n:
        raise DataError(f"a question is asked at least once, and the margin is 1 to {n} of {n} answers; not {margin}")
    scale = recipe.env.first_view.scale
    if scale >= 1:
        raise DataError("env.first_view.scale is 1: the first view is the whole; give a smaller one, such as 0.5")
    rewards = build.build_rewards(recipe)
    if rewards.judge is None:
        raise DataError("no reward of the recipe judges correctness; add one, such as `accuracy`")
    if (out / QUESTIONS).exists():
        raise DataError(f"{out / QUESTIONS} is there already and is not overwritten; choose another --out")
    total = len(questions) if limit is None else min(limit, len(questions))
    settings = {
        "recipe": recipe.name,
        "model": recipe.model.path if policy is None else type(policy).__name__,
        "questions": total,
        "n": n,
        "scale": scale,
        "temperature": recipe.sampling.temperature,
        "seed": recipe.seed,
    }
    counts = run_sync(lambda: _count(recipe, questions, out, settings, rewards, policy, on_done))
    return _write(questions, counts, out, settings | {"margin": margin}, balance=balance)


async def _count(
    recipe: Recipe,
    questions: Sequence[Sample],
    out: Path,
    settings: Mapping[str, Any],
    rewards: Rewards,
    policy: Policy | None,
    on_done: OnDone,
) -> list[Counts]:
    """The counts of all questions, those of an earlier attempt included."""
    log, known = _resume(out / COUNTS, settings)
    total, n = settings["questions"], settings["n"]
    todo = (index for index in range(total) if index not in known)
    used: Policy | None = policy
    try:
        while block := list(islice(todo, _BLOCK)):
            used = used or build.build_policy(recipe)
            asked = [(index, questions[index]) for index in block]
            counted = await _ask_block(recipe, asked, n, used, rewards)
            known |= {counts.index: counts for counts in counted}
            log.append(*map(asdict, counted))
            on_done(len(known), total)
    finally:
        log.close()
        await rewards.close()
        if used is not None and used is not policy:
            await used.close()
    return [known[index] for index in sorted(known)]


async def _ask_block(
    recipe: Recipe, asked: Sequence[tuple[int, Sample]], n: int, policy: Policy, rewards: Rewards
) -> list[Counts]:
    store = ImageStore()
    groups: dict[str, Group] = {}
    for name, scale in (("low", recipe.env.first_view.scale), ("high", 1.0)):
        vision = build.vision_of(recipe, policy)
        async for group in rollout_groups(
            [(f"{name}/{index}", sample) for index, sample in asked],
            size=n,
            make_env=build.env_maker(_one_turn(recipe, scale), store=store, vision=vision, tools=[]),
            policy=policy,
            store=store,
            sampling=build.sampling_of(recipe, seed=seed_for(recipe.seed, "split")),
            limits=build.limits_of(recipe),
            at_once=recipe.policy.concurrency or _IN_FLIGHT,
        ):
            groups[group.name] = await rewards.score(group)
    _check_some_worked([t for group in groups.values() for t in group.trajectories])
    return [_counted(index, groups[f"low/{index}"], groups[f"high/{index}"]) for index, _ in asked]


def _one_turn(recipe: Recipe, scale: float) -> Recipe:
    """The recipe with one look at one resolution, and nothing to call."""
    view = recipe.env.first_view.model_copy(update={"scale": scale})
    env = recipe.env.model_copy(update={"first_view": view, "tools": (), "max_turns": 1})
    return recipe.model_copy(update={"env": env})


def _counted(index: int, low: Group, high: Group) -> Counts:
    both = (*low.trajectories, *high.trajectories)
    return Counts(
        index,
        low=sum(t.correct is True for t in low.trajectories),
        high=sum(t.correct is True for t in high.trajectories),
        invalid=sum(t.correct is None for t in both),
        bad_image=any(t.stop is StopReason.BAD_IMAGE for t in both),
    )


def _check_some_worked(trajectories: Sequence[Trajectory]) -> None:
    """A policy that is not there says nothing about questions, and must not look as if it did."""
    failed = [t for t in trajectories if t.stop in (StopReason.POLICY_ERROR, StopReason.ENV_ERROR)]
    if len(failed) == len(trajectories):
        raise RunError(f"all {len(failed)} answers of a block failed; the first: {failed[0].error.splitlines()[0]}")


# --- the folder -----------------------------------------------------------------------------------------------------


def _resume(path: Path, settings: Mapping[str, Any]) -> tuple[JsonLines, dict[int, Counts]]:
    """The log of counts, and those that stand in it. Raises `DataError` when they were begun with other settings."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = JsonLines(path)
        if log.empty:
            log.append(settings)
        (_, begun), *rest = read_lines(path)
        known = [Counts(**record) for _, record in rest]
    except (OSError, TypeError) as error:
        raise DataError(f"{path}: cannot go on from it: {error}; choose another --out") from error
    if differing := [key for key in settings if begun.get(key) != settings[key]]:
        was = ", ".join(f"{key}={begun.get(key)!r} (now {settings[key]!r})" for key in differing)
        raise DataError(f"{path.parent} was begun with {was}; go on with that, or choose another --out")
    return log, {counts.index: counts for counts in known}


def _write(
    questions: Sequence[Sample], counts: Sequence[Counts], out: Path, settings: dict[str, Any], *, balance: bool
) -> SplitReport:
    n, margin = settings["n"], settings["margin"]
    halves: dict[int, Half] = {c.index: half for c in counts if (half := half_of(c, n=n, margin=margin)) is not None}
    sizes = Counter(halves.values())
    if not halves:
        raise DataError(
            f"none of {len(counts)} questions is easy or hard for this policy; its counts are in {out / COUNTS}"
        )
    kept = dict(_balanced(halves, min(sizes["easy"], sizes["hard"]), settings["seed"])) if balance else halves
    by_index = {c.index: c for c in counts}
    write_samples((_marked(questions[index], half, by_index[index]) for index, half in kept.items()), out / QUESTIONS)
    report = SplitReport(
        questions=len(counts),
        easy=sizes["easy"],
        hard=sizes["hard"],
        written=len(kept),
        dropped=dict(Counter(_why_dropped(c) for c in counts if c.index not in halves)),
        settings=settings,
        labels=_labels(questions, counts, halves),
    )
    (out / REPORT).write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return report


def _balanced(halves: Mapping[int, Half], size: int, seed: int) -> Iterator[tuple[int, Half]]:
    """As many of each half, drawn by the seed, in the order of the questions."""
    chosen: set[int] = set()
    for half in ("easy", "hard"):
        members = [index for index, of in halves.items() if of == half]
        chosen |= set(sorted(members, key=lambda index: seed_for(seed, "balance", index))[:size])
    return ((index, half) for index, half in halves.items() if index in chosen)


def _marked(sample: Sample, half: Half, counts: Counts) -> Sample:
    found = {"needs_original": half == "hard", "right_low": counts.low, "right_high": counts.high}
    return replace(sample, meta={**sample.meta, **found})


def _why_dropped(counts: Counts) -> str:
    if counts.bad_image:
        return "the picture cannot be read"
    if counts.invalid:
        return "an answer has no verdict"
    if counts.high == 0 and counts.low == 0:
        return "never right"
    if counts.high < counts.low:
        return "right more often at first"
    return "neither always right nor, in full, by the margin"


def _labels(questions: Sequence[Sample], counts: Sequence[Counts], halves: Mapping[int, Half]) -> dict[str, int]:
    names: dict[Any, str] = {True: "hard", False: "easy"}
    known = ((names.get(questions[c.index].meta.get("needs_original")), halves.get(c.index, "dropped")) for c in counts)
    return dict(sorted(Counter(f"{was} as {found}" for was, found in known if was is not None).items()))
