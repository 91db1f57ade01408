"""Shared memory under names that are known beforehand, so that a process that outlives this one can remove what it left."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory

from agentvision.engine.types import EngineError

PREFIX = f"agentvision-{secrets.token_hex(8)}-"
"""Of this process and those forked from it."""


@contextmanager
def new_memory(size: int) -> Iterator[SharedMemory]:
    """`size` bytes; gone when the block ends, and with this process however it ends."""
    memory = SharedMemory(f"{PREFIX}{secrets.token_hex(8)}", create=True, size=max(size, 1))
    try:
        try:
            os.posix_fallocate(memory._fd, 0, max(size, 1))  # type: ignore[attr-defined]  # else a full one ends the process
        except OSError as error:
            raise EngineError(
                f"there is no room for {size / 2**20:.0f} MiB in shared memory: enlarge /dev/shm (docker: --shm-size)"
            ) from error
        yield memory
    finally:
        memory.unlink()  # first: it cannot be closed while anything still looks at it
        memory.close()
