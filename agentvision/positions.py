"""M-RoPE positions from the token ledger.

Qwen2.5-VL gives each token three positions (time, height, width). Text counts all three up together. An image of
t·h·w merged patches starts at the count so far, spans its grid along the three axes, and the text after it goes on at
start + max(h, w). Sources: Qwen2-VL, arXiv 2409.12191, section 2.1 (M-RoPE); the model's own `get_rope_index`, which
this equals. Modality comes from the segments, never from ids: a stray placeholder id in text cannot shift anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from agentvision.types import ImageSegment, Segment

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Positions:
    """`ids` is (3, T) int64: time, height and width of each expanded token; `next` is the position of what follows."""

    ids: torch.Tensor
    next: int


def mrope_positions(segments: Iterable[Segment], *, merge: int, start: int = 0) -> Positions:
    """Positions of the trainer's stream (each image as its `tokens` placeholders).

    `merge` is the vision tower's spatial merge size, `start` the position of the first token. Raises `ValueError` for
    an image whose token count disagrees with its grid.
    """
    import torch

    pieces: list[torch.Tensor] = []
    position, pending = start, 0
    for segment in segments:
        if not isinstance(segment, ImageSegment):
            pending += len(segment.ids)
            continue
        if pending:
            pieces.append(torch.arange(position, position + pending).expand(3, -1))
            position, pending = position + pending, 0
        grid = _image_grid(segment.grid, merge)
        if grid.shape[1] != segment.tokens:
            raise ValueError(
                f"view {segment.view} has {segment.tokens} tokens, but its grid {segment.grid!r} merged by {merge} "
                f"makes {grid.shape[1]}"
            )
        pieces.append(grid + position)
        position += max(segment.grid[1], segment.grid[2]) // merge
    if pending:
        pieces.append(torch.arange(position, position + pending).expand(3, -1))
        position += pending
    ids = torch.cat(pieces, dim=1) if pieces else torch.zeros(3, 0, dtype=torch.long)
    return Positions(ids, position)


@lru_cache(maxsize=256)
def _image_grid(grid: tuple[int, int, int], merge: int) -> torch.Tensor:
    """(3, t·h·w/merge²): the axes' indices of an image's merged patches in row-major order, from 0."""
    import torch

    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    return torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).reshape(-1, 3).T.contiguous()
