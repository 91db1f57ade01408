"""Who waits for the engine's thread, for a turn or an errand, and how they are told from there.

Waking an event loop gives it the interpreter, and the engine waits meanwhile: each loop is woken once for all that became of
a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agentvision.engine.types import Ask, EngineError, Sampled
from agentvision.errors import first_line


@dataclass(slots=True, eq=False)
class Ticket:
    """A turn in the engine, and who waits for it. `said` is what it had said when it was last put back, if it was.

    `prompt` and `params` are vLLM's, made before the ticket is handed to the engine's thread.
    """

    key: str
    ask: Ask
    prompt: Any
    params: Any
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Sampled]
    engine_id: str = ""
    said: Sampled | None = None


@dataclass(slots=True, eq=False)
class Errand:
    """Something for the thread to do between two steps, and who waits for it."""

    do: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What became of what somebody waits for."""

    waiting: Ticket | Errand
    result: Any = None
    error: Exception | None = None


def as_told(error: Exception) -> Exception:
    """What a turn's caller is told: a `ValueError` is about the turn itself."""
    return error if isinstance(error, ValueError) else engine_error(error)


def engine_error(error: BaseException) -> EngineError:
    """What vLLM raised, as an `EngineError`."""
    if isinstance(error, EngineError):
        return error
    made = EngineError(f"vLLM: {type(error).__name__}: {first_line(error)}")
    made.__cause__ = error
    return made


def tell(told: Sequence[Told]) -> None:
    """Each event loop is woken once."""
    for loop in {one.waiting.loop for one in told}:
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, [one for one in told if one.waiting.loop is loop])


def _settle(told: Sequence[Told]) -> None:
    for one in told:
        if one.waiting.future.done():
            continue
        if one.error is None:
            one.waiting.future.set_result(one.result)
        else:
            one.waiting.future.set_exception(one.error)
