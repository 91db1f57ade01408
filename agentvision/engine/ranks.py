"""The training processes of a launch: which one this is, and what they tell one another.

What is told is collective: every rank calls the same of these functions in the same order, and waits there for the others. So
what fails on one rank is told before it is raised, and raised on all: one that raised alone would leave the others waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

_T = TypeVar("_T")


def ranks() -> int:
    """Training processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This one's number among them."""
    return distributed.get_rank() if ranks() > 1 else 0


def told_by_first(value: _T) -> _T:
    """The first rank's value, on all of them."""
    told = [value]
    if ranks() > 1:
        distributed.broadcast_object_list(told)
    return told[0]


def told_by_all(value: _T) -> list[_T]:
    """Every rank's value, in their order."""
    told: list[Any] = [value]
    if ranks() > 1:
        told = [None] * ranks()
        distributed.all_gather_object(told, value)
    return told


def raise_any(error: Exception | None) -> None:
    """Raise on all ranks what failed on any: on those where nothing did, the first of the others' errors, with its rank."""
    for number, theirs in enumerate(told_by_all(error)):
        if error is None and theirs is not None:
            raise type(theirs)(f"rank {number}: {theirs}")
    if error is not None:
        raise error


def tells_of_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone or does not answer. gloo's errors have no type of their own."""
    return ranks() > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error))


async def in_thread(work: Callable[[], _T]) -> _T:
    """`asyncio.to_thread` on this thread's GPU."""
    return await asyncio.to_thread(on_this_gpu(work))


def on_this_gpu(work: Callable[[], _T]) -> Callable[[], _T]:
    """The same work for another thread: each has a current device of its own, the first GPU if it is not told."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def there() -> _T:
        if device is not None:
            torch.cuda.set_device(device)
        return work()

    return there
