"""What a run holds from its beginning to its end, kept out of Python's full collections.

The libraries and the model of a process are half a million objects and more, which every full collection would look
through; the episodes of a step are enough to set one off, and it holds them all up. Episodes live longer than the 700
allocations after which Python looks at new objects, so it looks less often, and finds them gone.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (10_000, 50, 2)
"""New objects between two collections of the youngest; of these between two of the middle, where episodes in flight stand and
are not garbage; of those between two full ones, which so come after as many of the youngest as Python has it."""


@contextmanager
def settled_heap() -> Iterator[None]:
    """Collections inside the `with` leave alone what was alive before it; what then becomes garbage waits for its end."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
