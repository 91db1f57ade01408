"""A launch of two training processes: a function in each, in a world of gloo."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

RANKS = 2
_WAIT_S = 120
"""A rank that waits so long for the others hangs."""


def on_ranks(work: Callable[..., Any], *arguments: Any, folder: Path, timeout_s: float = 280) -> list[Any]:
    """What `work(*arguments)` returns on each rank; `work` belongs to a module. Raises `AssertionError` where any fails."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    processes = [
        context.Process(target=_on_rank, args=(number, folder, told, work, arguments)) for number in range(RANKS)
    ]
    for process in processes:
        process.start()
    try:
        results = dict(told.get(timeout=timeout_s) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    failed = {number: result for number, (good, result) in results.items() if not good}
    assert not failed, "\n".join(f"rank {number}: {why}" for number, why in failed.items())
    return [results[number][1] for number in range(RANKS)]


def _on_rank(number: int, folder: Path, told: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(RANKS), HF_HUB_OFFLINE="1")
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group(
        "gloo", store=store, rank=number, world_size=RANKS, timeout=timedelta(seconds=_WAIT_S)
    )
    try:
        told.put((number, (True, work(*arguments))))
    except BaseException:
        told.put((number, (False, traceback.format_exc())))
