"""What a run holds from its beginning to its end, kept out of Python's full collections.

The libraries and the model of a process are half a million objects and more, which every full collection would look
through; the episodes of a step are enough to set one off, and it holds them all up. Episodes live longer than the 700
allocations after which Python looks at new objects, so it looks less often, and finds them gone.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 10_000
"""How many may be made between two collections of the youngest."""


@contextmanager
def settled_heap() -> Iterator[None]:
    """Collections inside the `with` leave alone what was alive before it; what then becomes garbage waits for its end."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
