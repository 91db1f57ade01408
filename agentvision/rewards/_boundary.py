"""The one boundary through which rewards are called.

User code may raise, hang, block, exit or return rubbish; here each of these becomes `Score.invalid(reason)`, and
nothing but a cancellation from outside gets through.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import numbers
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from agentvision._workers import DeadlinePassed, run_async, run_blocking
from agentvision.types import Group, Score, Trajectory

_log = logging.getLogger(__name__)

REASON_CHARS = 300
"""A reason is cut to this length: it is written with every trajectory."""


async def score_trajectory(reward: Callable[..., Any], trajectory: Trajectory, *, name: str, timeout_s: float) -> Score:
    """The reward's score, or invalid with the reason why there is none. Never raises for what the reward does."""
    try:
        return as_score(await _attempt(reward, trajectory, name=name, timeout_s=timeout_s))
    except _Failed as failure:
        return Score.invalid(str(failure))


async def score_group(reward: Callable[..., Any], group: Group, *, name: str, timeout_s: float) -> list[Score]:
    """A group reward's G scores, or G times invalid with the reason. Never raises for what the reward does."""
    size = len(group.trajectories)
    try:
        return as_scores(await _attempt(reward, group, name=name, timeout_s=timeout_s), size)
    except _Failed as failure:
        return [Score.invalid(str(failure))] * size


def as_score(value: object) -> Score:
    """A reward's result as a score: finite numbers, booleans and scores are, anything else is invalid."""
    if isinstance(value, Score):
        if value.value is None:
            return value
        inner = as_score(value.value)
        return replace(inner, reason=value.reason) if inner.valid else inner
    if isinstance(value, bool):
        return Score(float(value))
    complaint = _complaint(value)
    return Score.invalid(complaint) if complaint else Score(float(value))  # type: ignore[arg-type]


def as_scores(value: object, size: int) -> list[Score]:
    """A group reward's result as `size` scores; all are invalid when the list or one of its entries is rubbish."""
    if not isinstance(value, list | tuple):
        return [Score.invalid(f"returned {_describe(value)} instead of a list of {size} scores")] * size
    if len(value) != size:
        return [Score.invalid(f"returned {len(value)} scores for {size} trajectories")] * size
    scores = [as_score(entry) for entry in value]
    for index, (entry, score) in enumerate(zip(value, scores, strict=True)):
        if not score.valid and not (isinstance(entry, Score) and entry.value is None):
            return [Score.invalid(f"entry {index}: {score.reason}")] * size
    return scores


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it only makes a coroutine, so that it may be called on the event loop."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


async def invoke(function: Callable[..., Any], /, *args: Any, name: str, timeout_s: float, **kwargs: Any) -> Any:
    """Call an async function on the loop, or a sync one in a thread. Raises `DeadlinePassed` and what it raises."""
    call = functools.partial(function, *args, **kwargs)
    result = call() if is_async(function) else await run_blocking(call, name=name, timeout_s=timeout_s)
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    return await run_async(wait, name=name, timeout_s=timeout_s)


class _Failed(Exception):
    """A reward gave no result; the text is the reason."""


async def _attempt(reward: Callable[..., Any], subject: Trajectory | Group, *, name: str, timeout_s: float) -> Any:
    try:
        return await invoke(reward, subject, name=name, timeout_s=timeout_s)
    except DeadlinePassed as error:
        raise _Failed(f"deadline: {error}") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # from outside
            raise
        raise _Failed("cancelled itself") from None
    except Exception as error:
        _log.debug("a reward raised", exc_info=error)
        raise _Failed(_explain(error)) from error


def _explain(error: BaseException) -> str:
    """Type, message and the line it came from (the file's name alone: reasons are shown in reports)."""
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        where = f" ({PurePath(frame.f_code.co_filename).name}:{line})"
    try:
        text = str(error)
    except Exception:  # an exception of the user's own, whose text fails too
        text = "its message cannot be shown"
    return f"raised {type(error).__name__}: {text[:REASON_CHARS]}{where}"


def _complaint(value: object) -> str:
    """Why a value is not a finite number; empty when it is."""
    if isinstance(value, numbers.Real):
        try:
            if math.isfinite(float(value)):
                return ""
        except (OverflowError, ValueError, TypeError):
            return f"returned a {type(value).__name__} that is no float"
        return f"returned {float(value)}, which is not finite"
    return f"returned {_describe(value)}, not a number"


def _describe(value: object) -> str:
    if value is None:
        return "None"
    return f"{value[:40]!r}" if isinstance(value, str) else f"a {type(value).__name__}"
