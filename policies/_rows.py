"""Who owns which row of the KV pool, what each row holds, and which prompts can be copied from it.

A row belongs to a session from its first turn until it is released or evicted. The content of a free row stays findable
until the row is taken, so a prompt outlives the session that prefilled it for as long as there is room.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from agentvision.policies._jobs import NO_TOKENS, Job
from agentvision.policies._kv_pool import KVPool, KVShape

_KEEP_BYTES = 1 << 30
"""An empty pool larger than this is given back: an update of the weights wants the memory."""


@dataclass(slots=True, eq=False)
class Row:
    """A row of the pool. `codes` are the tokens that it holds, `prompts` the keys under which others find it."""

    slot: int
    session: str | None = None
    codes: np.ndarray = field(default_factory=lambda: NO_TOKENS)
    prompts: set[bytes] = field(default_factory=set)
    job: Job | None = None
    joined: int = 0
    """The engine's step before which its job joined."""
    idle_since: float = 0.0


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefilled prompt: the row whose first `length` tokens it is, and the state (H,) of its last token."""

    row: Row
    length: int
    hidden: torch.Tensor
    next_position: int


@dataclass(frozen=True, slots=True)
class Move:
    """A row's content went from slot `source` to slot `target`."""

    source: int
    target: int


class RowTable:
    """All rows, in the order of their slots."""

    def __init__(self, shape: KVShape, *, max_rows: int) -> None:
        self.max_rows = max_rows
        self.rows: list[Row] = []
        self.pool = KVPool(shape)
        self.sessions: dict[str, Row] = {}
        self._prefixes: dict[bytes, Prefix] = {}

    def grow(self, needed: int) -> None:
        """Have `needed` rows, growing by doubling up to `max_rows`."""
        if needed > len(self.rows):
            count = max(needed, min(2 * len(self.rows), self.max_rows))
            self.pool.reserve(rows=count, capacity=0)
            self.rows += [Row(slot) for slot in range(len(self.rows), count)]

    def free(self) -> list[Row]:
        """The rows without a session, those that nobody could copy from first, then the longest idle."""
        return sorted((r for r in self.rows if r.session is None), key=lambda r: (bool(r.prompts), r.idle_since))

    def bind(self, row: Row, session: str) -> None:
        row.session = session
        self.sessions[session] = row

    def release(self, session: str) -> Row | None:
        """Free the session's row, if it has one."""
        row = self.sessions.pop(session, None)
        if row is not None:
            row.session, row.idle_since = None, time.monotonic()
        return row

    def oldest_idle(self, *, keep: set[str]) -> Row | None:
        """The row whose session has waited longest for its next turn, except the sessions in `keep`."""
        idle = [row for session, row in self.sessions.items() if row.job is None and session not in keep]
        return min(idle, key=lambda r: r.idle_since, default=None)

    def place(self, rows: Sequence[Row], start: int, *, length: int) -> list[Move]:
        """Swap rows so that those given stand at start, start + 1, …; `length` is the most that any of them holds."""
        before: dict[Row, int] = {}
        for slot, row in enumerate(rows, start):
            if row.slot == slot:
                continue
            other = self.rows[slot]
            before.setdefault(row, row.slot)
            before.setdefault(other, slot)
            self.rows[slot], self.rows[row.slot] = row, other
            other.slot, row.slot = row.slot, slot
        moved = [(Move(source, row.slot), row) for row, source in before.items() if source != row.slot]
        held = [move for move, row in moved if len(row.codes)]
        longest = max((len(row.codes) for _, row in moved), default=0)
        self.pool.move([m.source for m in held], [m.target for m in held], length=max(length, longest) if held else 0)
        return [move for move, _ in moved]

    # --- prompts that can be copied ---------------------------------------------------------------------------------

    def find(self, key: bytes) -> Prefix | None:
        return self._prefixes.get(key)

    def share(self, key: bytes, prefix: Prefix) -> None:
        self._prefixes[key] = prefix
        prefix.row.prompts.add(key)

    def forget(self, row: Row, *, beyond: int) -> None:
        """The row is about to be overwritten after its first `beyond` tokens: longer prompts are no more in it."""
        for key in [k for k in row.prompts if self._prefixes[k].length > beyond]:
            row.prompts.discard(key)
            del self._prefixes[key]

    def forget_all(self) -> None:
        """Nothing that the rows hold is valid any more."""
        self._prefixes.clear()
        for row in self.rows:
            row.codes, row.prompts = NO_TOKENS, set()

    @property
    def is_large(self) -> bool:
        """Whether the pool holds more memory than is worth keeping for nobody."""
        return self.pool.nbytes > _KEEP_BYTES
