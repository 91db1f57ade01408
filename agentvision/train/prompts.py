"""The order of prompts: a seeded shuffle an epoch, read by a cursor. The cursor is all there is to save."""

from __future__ import annotations

import random
from collections.abc import Sequence

from agentvision.errors import DataError
from agentvision.seeds import seed_for
from agentvision.types import Sample


class PromptStream:
    """Endless prompts for one rank of `world`. `cursor` counts the prompts this rank has drawn."""

    def __init__(self, samples: Sequence[Sample], *, seed: int, cursor: int = 0, rank: int = 0, world: int = 1) -> None:
        if len(samples) == 0:
            raise DataError("the training split has no questions; see data.train in the recipe")
        self._samples, self._seed = samples, seed
        self.cursor, self._rank, self._world = cursor, rank, world
        self._epoch = -1
        self._order: list[int] = []

    def take(self, count: int) -> list[Sample]:
        """The next `count` prompts. Ranks draw in turn from one shuffle, so that none is drawn twice in an epoch."""
        return [self._samples[self._next()] for _ in range(count)]

    def _next(self) -> int:
        epoch, place = divmod(self.cursor * self._world + self._rank, len(self._samples))
        if epoch != self._epoch:
            self._order = list(range(len(self._samples)))
            random.Random(seed_for(self._seed, "order", epoch)).shuffle(self._order)
            self._epoch = epoch
        self.cursor += 1
        return self._order[place]
