"""An evaluation: the agent loop of training over held-out questions, and what came of it.

Prompts, resolutions, tools and grammar are the recipe's, as in training; only the temperature and the seed are the
evaluation's own. Questions are asked in blocks, each with an image store of its own, so that pixels do not pile up, and
every trajectory goes to a journal in `evaluation/`, beside `results.json`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agentvision import build
from agentvision._whole_file import whole_file
from agentvision._workers import run_sync
from agentvision.data import open_questions
from agentvision.errors import DataError, RunError
from agentvision.evaluate.metrics import INTERVAL, summarize
from agentvision.images import ImageStore
from agentvision.journal import Journal
from agentvision.policy import Policy, calls_natively
from agentvision.preflight import preflight
from agentvision.recipe import Recipe
from agentvision.rewards import Rewards
from agentvision.rewards.format import Format
from agentvision.rollout import run_group
from agentvision.run_folder import EVALUATION, RESULTS
from agentvision.tool import Tool
from agentvision.types import Sample, StopReason, Trajectory

log = logging.getLogger(__name__)

SCHEMA = 1

_BLOCK = 256
"""Questions whose images are in memory together."""
_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class EvalResult:
    """`metrics` are the values of `results.json`; `path` is where it stands, None when nothing was written."""

    metrics: Mapping[str, Any]
    trajectories: tuple[Trajectory, ...]
    path: Path | None = None

    @property
    def accuracy(self) -> float | None:
        return self.metrics["accuracy"]

    @property
    def call_rate(self) -> float | None:
        return self.metrics["call_rate"]


def evaluate(
    recipe: Recipe,
    *,
    model: str | Path | None = None,
    n: int | None = None,
    seed: int | None = None,
    out: Path | str | None = None,
    policy: Policy | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> EvalResult:
    """Ask the recipe's held-out questions and measure the answers.

    `model` (as a recipe names one) replaces the recipe's; `policy` replaces both and stays open. `n` and `seed` replace
    those of the recipe's `evaluation`; the seed picks the questions of a source that generates them, and seeds
    sampling. With `out`, results.json and the trajectories are written there. `on_done(done, total)` hears of progress.

    Raises:
        RunError: `out` holds results already, or every episode failed before it could say anything about the model.
        DataError: the images of more than `data.max_bad_share` of the questions cannot be read.
        AgentVisionError: the model, data set, tools or rewards cannot be found or used.
    """
    return run_sync(lambda: _evaluate(recipe, model, n, seed, out, policy, on_done))


async def _evaluate(
    recipe: Recipe,
    model: str | Path | None,
    n: int | None,
    seed: int | None,
    out: Path | str | None,
    policy: Policy | None,
    on_done: Callable[[int, int], None],
) -> EvalResult:
    preflight(recipe, model=model, own_policy=policy is not None)
    folder = None if out is None else _claim(Path(out))
    seed = evaluation_seed(recipe) if seed is None else seed
    n = recipe.evaluation.n if n is None else n
    if n < 1:
        raise RunError(f"n is {n!r}; an evaluation needs at least one question")
    questions = open_questions(recipe, "eval", seed=seed)
    if n > len(questions):
        log.warning("%d questions were asked for, the data set has %d", n, len(questions))
    samples = [questions[index] for index in range(min(n, len(questions)))]
    tools, rewards = build.build_tools(recipe), build.build_rewards(recipe)
    name = build.model_name(recipe, model=model) if policy is None else type(policy).__name__
    used = build.build_policy(recipe, model=model) if policy is None else policy
    journal = None if folder is None else Journal(folder / EVALUATION, rewind_to=0)
    began = time.perf_counter()
    try:
        trajectories = await ask(
            recipe, samples, policy=used, tools=tools, rewards=rewards, seed=seed, journal=journal, on_done=on_done
        )
        seconds = time.perf_counter() - began
    finally:
        if journal is not None:
            journal.close()
        await rewards.close()
        if policy is None:
            await used.close()
    _check_policy(trajectories)
    _check_images(trajectories, recipe.data.max_bad_share)
    metrics = summarize(trajectories, seed=seed) | {
        "rewards": rewards.summary([rewards.metrics()]),
        "seconds": seconds,
        "interval": INTERVAL,
        **_about(recipe, model=name, policy=used, seed=seed),
    }
    return EvalResult(metrics, tuple(trajectories), None if folder is None else _write(folder / RESULTS, metrics))


def evaluation_seed(recipe: Recipe) -> int:
    """What picks the questions of a source that makes them and seeds their sampling, between training steps too."""
    return recipe.seed if recipe.evaluation.seed is None else recipe.evaluation.seed


async def ask(
    recipe: Recipe,
    samples: Sequence[Sample],
    *,
    policy: Policy,
    tools: Sequence[Tool],
    rewards: Rewards,
    seed: int,
    journal: Journal | None = None,
    step: int = 0,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[Trajectory]:
    """One scored trajectory a question, in the questions' order, at the recipe's evaluation temperature.

    This is what a trainer calls between steps, with the policy it trains; `step` is written to the journal.
    """
    vision = build.vision_of(recipe, policy)
    sampling = build.sampling_of(recipe, seed=seed, temperature=recipe.evaluation.temperature)
    limits, schemas = build.limits_of(recipe), [tool.schema for tool in tools]
    gate = asyncio.Semaphore(recipe.policy.concurrency or _IN_FLIGHT)
    trajectories: list[Trajectory] = []
    done = 0

    async def one(place: int, sample: Sample, store: ImageStore) -> Trajectory:
        nonlocal done
        async with gate:
            group = await run_group(
                sample,
                size=1,
                make_env=build.env_maker(
                    recipe, store=store, vision=vision, tools=tools, native=calls_natively(policy)
                ),
                policy=policy,
                store=store,
                sampling=sampling,
                limits=limits,
                group=f"eval-{place}",  # the sample's id may repeat in a data set
                tools=schemas,
            )
        scored = (await rewards.score(group)).trajectories[0]
        done += 1
        on_done(done, len(samples))
        return await _with_format(scored)

    for start in range(0, len(samples), _BLOCK):
        store = ImageStore()
        block = enumerate(samples[start : start + _BLOCK], start=start)
        finished = await asyncio.gather(*(one(place, sample, store) for place, sample in block))
        if journal is not None:
            journal.append(finished, step=step, store=store)
        trajectories += finished
    return trajectories


async def _with_format(trajectory: Trajectory) -> Trajectory:
    """With a score for the format, which is measured also where a recipe does not pay for it."""
    if Format.name in trajectory.scores or trajectory.stop.broken:
        return trajectory
    scores = {**trajectory.scores, Format.name: await Format()(trajectory)}
    return trajectory.with_scores(scores, reward=trajectory.reward, correct=trajectory.correct)


def _claim(folder: Path) -> Path:
    """The folder for the results, which are never overwritten. An evaluation that was cut off may be done again."""
    if (folder / RESULTS).exists():
        raise RunError(f"{folder / RESULTS} is there already and is not overwritten; choose a new --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot write results here: {error}") from error
    return folder


def _check_policy(trajectories: Sequence[Trajectory]) -> None:
    """An evaluation in which nothing ran says nothing about the model, and must not look as if it did; one in which the policy
    failed at times says of fewer questions what it says."""
    if trajectories and all(t.stop.broken for t in trajectories):
        first = trajectories[0]
        raise RunError(f"all {len(trajectories)} episodes ended in {str(first.stop)!r}; the first: {_reason(first)}")
    if failed := [t for t in trajectories if t.stop is StopReason.POLICY_ERROR]:
        log.warning(
            "the policy failed in %d of %d episodes, which are in no number; the first: %s",
            len(failed), len(trajectories), _reason(failed[0]),
        )  # fmt: skip


def _reason(trajectory: Trajectory) -> str:
    return trajectory.error.splitlines()[0] if trajectory.error else "no reason given"


def _check_images(trajectories: Sequence[Trajectory], max_share: float) -> None:
    """Questions whose images cannot be read leave the numbers; too many would make them another data set's."""
    bad = [t for t in trajectories if t.stop is StopReason.BAD_IMAGE]
    if len(bad) > max_share * len(trajectories):
        raise DataError(
            f"the images of {len(bad)} of {len(trajectories)} questions cannot be read, more than "
            f"data.max_bad_share={max_share!r} allows; the first is {bad[0].sample.id!r}: {bad[0].error}"
        )
    if bad:
        log.warning(
            "the images of %d questions cannot be read; the first is %r: %s", len(bad), bad[0].sample.id, bad[0].error
        )


def _about(recipe: Recipe, *, model: str, policy: Policy, seed: int) -> dict[str, Any]:
    """What was evaluated, where and with what."""
    labels = sorted({*recipe.origins.values()})
    profiles = dict.fromkeys(
        label.split(",")[0].removeprefix("profile ") for label in labels if label.startswith("profile ")
    )
    overrides = {".".join(key): label for key, label in recipe.origins.items() if label == "override"}
    return {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "profile": " + ".join(profiles) or None,
        "overrides": sorted(overrides),
        "model": model,
        "seed": seed,
        "temperature": recipe.evaluation.temperature,
        "device": str(getattr(getattr(policy, "model", None), "device", platform.machine())),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


_PACKAGES = ("agentvision", "torch", "transformers", "pillow")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write(path: Path, metrics: Mapping[str, Any]) -> Path:
    try:
        with whole_file(path) as part:
            part.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot write: {error}") from error
    return path
