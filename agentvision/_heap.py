"""What a run holds from its beginning to its end, kept out of Python's full collections.

The libraries and the model of a process are half a million objects and more, which every full collection would look
through; the episodes of a step are enough to set one off, and it holds them all up.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def settled_heap() -> Iterator[None]:
    """Collections inside the `with` leave alone what was alive before it; what then becomes garbage waits for its end."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
