"""Prompts on their way into rows: which of their tokens are new, and the forward passes that compute those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agentvision.images import ImageStore
from agentvision.policies._jobs import Job
from agentvision.policies._kv_pool import KVPool
from agentvision.policies._network import Network, Ragged
from agentvision.policies._rows import Prefix, Row
from agentvision.positions import mrope_positions
from agentvision.types import ImageHash, ImageSegment, Segment, TextSegment


@dataclass(slots=True, eq=False)
class Joiner:
    """A job on its way into the batch: its row must hold `codes`, whose first `past` it holds already."""

    job: Job
    codes: np.ndarray
    key: bytes
    row: Row
    prefix: Prefix | None = None
    """The row that it copies its whole prompt from, when one was found."""
    leader: Joiner | None = None
    """The joiner beside it that prefills the same prompt, from whom it copies afterwards."""
    past: int = 0
    next_position: int = 0

    @property
    def new(self) -> int:
        return len(self.codes) - self.past

    @property
    def copies(self) -> bool:
        return self.leader is not None or self.prefix is not None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The prompt and what the turn has said so far."""
        job = self.job
        return (*job.segments, TextSegment(tuple(job.ids))) if job.ids else job.segments

    def images(self) -> dict[ImageHash, tuple[ImageStore, ImageSegment]]:
        """The images that it prefills."""
        return {s.image: (self.job.store, s) for s, _ in _images_after(self.job.segments, self.past)}


def chunks(leaders: Sequence[Joiner], *, tokens: int) -> Iterator[list[Joiner]]:
    """Neighbours (the longest first) for one forward pass each: all fresh or all going on, at most `tokens` padded."""
    chunk: list[Joiner] = []
    for joiner in leaders:
        if chunk and ((joiner.past > 0) != (chunk[0].past > 0) or (len(chunk) + 1) * chunk[0].new > tokens):
            yield chunk
            chunk = []
        chunk.append(joiner)
    if chunk:
        yield chunk


def prefill(
    network: Network, pool: KVPool, chunk: Sequence[Joiner], images: Mapping[ImageHash, torch.Tensor]
) -> torch.Tensor:
    """Compute what the neighbouring rows of a chunk do not hold; the state (B, H) of each prompt's last token."""
    rows, width = len(chunk), max(j.new for j in chunk)
    codes = np.zeros((rows, width), dtype=np.int64)
    positions = torch.zeros(3, rows, width, dtype=torch.int64)
    pieces: list[torch.Tensor] = []
    for k, joiner in enumerate(chunk):
        codes[k, : joiner.new] = joiner.codes[joiner.past :]
        segments = joiner.segments
        all_positions = mrope_positions(segments, merge=network.merge)
        positions[:, k, : joiner.new] = all_positions.ids[:, joiner.past :]
        joiner.next_position = all_positions.next
        pieces += [images[s.image][skip:] for s, skip in _images_after(segments, joiner.past)]
    device = network.device
    embeds = network.embed(torch.from_numpy(np.maximum(codes, 0)).to(device))
    if pieces:
        places = torch.from_numpy(np.flatnonzero(codes.reshape(-1) < 0)).to(device)
        embeds.view(rows * width, -1)[places] = torch.cat(pieces)
    fresh = chunk[0].past == 0
    start = chunk[0].row.slot
    return network.last_hidden(
        Ragged(
            embeds=embeds,
            positions=positions.to(device),
            past=torch.tensor([j.past for j in chunk], device=device),
            lengths=torch.tensor([j.new for j in chunk], device=device),
            fresh=fresh,
        ),
        pool.window(start, start + rows, length=max(j.past for j in chunk) + width),
    )


def _images_after(segments: Sequence[Segment], past: int) -> Iterator[tuple[ImageSegment, int]]:
    """The images that reach beyond the first `past` tokens, each with how many of its tokens lie before."""
    at = 0
    for segment in segments:
        if not isinstance(segment, ImageSegment):
            at += len(segment.ids)
            continue
        if at + segment.tokens > past:
            yield segment, max(0, past - at)
        at += segment.tokens
