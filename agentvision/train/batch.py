"""From token ledgers to micro-batches.

A row holds one or several trajectories that share their opening (the rollouts of one prompt): the opening once, then each
trajectory's own tokens as a branch. A row of one branch is the plain padded layout. Everything downstream works on flat
indices into `(B, T)`, so the losses never learn which layout made them. Modality comes from the segments (provenance),
never from ids; each image is named once a micro-batch by its hash, and its pixels are never preprocessed again.

Rows are trimmed after the last position that predicts a sampled token: what follows teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile

import torch
from torch import Tensor

from agentvision.positions import mrope_positions
from agentvision.types import ImageHash, ImageSegment, Segment, TextSegment


@dataclass(frozen=True, slots=True)
class Example:
    """One trajectory in the update. A supervised example has advantage 1 and log-probs 0."""

    segments: tuple[Segment, ...]
    advantage: float = 1.0
    proximal: tuple[float, ...] | None = None
    """Log-probs of the sampled tokens under the weights that the step begins with, where they were computed."""

    @property
    def sampled(self) -> int:
        """Tokens in the loss."""
        return sum(len(s.ids) for s in self.segments if isinstance(s, TextSegment) and s.sampled)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows ready for one forward. B rows of T tokens, M image tokens, N sampled tokens; indices are into B·T flattened."""

    ids: Tensor
    """(B, T) token ids; 0 at image tokens and padding."""
    positions: Tensor
    """(3, B, T) M-RoPE positions (temporal, height, width)."""
    branches: Tensor | None
    """(B, T) 0 in the shared opening, k in branch k, -1 in padding; None when every row has one branch (then causal
    attention over right-padded rows needs no mask)."""
    images: tuple[ImageHash, ...]
    """Unique, in order of first use."""
    image_slots: Tensor
    """(M,) where image tokens stand."""
    image_sources: Tensor
    """(M,) which row of the images' concatenated features stands there."""
    predictors: Tensor
    """(N,) the positions whose hidden state predicts a sampled token."""
    targets: Tensor
    """(N,) the sampled ids."""
    recorded: Tensor
    """(N,) log-probs recorded at sampling."""
    proximal: Tensor | None
    """(N,) log-probs under the weights that the step begins with; None when they were not computed."""
    advantages: Tensor
    """(N,) the advantage of the token's trajectory."""
    lengths: Tensor
    """(N,) sampled tokens of the token's trajectory."""
    owners: Tensor
    """(N,) index of the token's example in the list that was planned."""

    @property
    def tokens(self) -> int:
        return self.targets.numel()

    def to(self, device: torch.device | str) -> MicroBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def _is_opening(segment: Segment) -> bool:
    return not (isinstance(segment, TextSegment) and segment.sampled)


def _opening(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """What comes before the model's first token."""
    return tuple(takewhile(_is_opening, segments))


def _length(segments: Sequence[Segment]) -> int:
    return sum(s.tokens if isinstance(s, ImageSegment) else len(s.ids) for s in segments)


def _fed(segments: Sequence[Segment]) -> int:
    """Tokens that have to be fed: all before the last sampled one."""
    end = position = 0
    for segment in segments:
        position += _length([segment])
        if not _is_opening(segment):
            end = position - 1
    return end


@dataclass(frozen=True, slots=True)
class _Row:
    opening: int
    members: tuple[int, ...]
    length: int


def _cost(length: int, hidden: int) -> float:
    """Multiply-accumulates of one decoder layer over a row, up to a constant: linear maps and dense attention."""
    return length * 12 * hidden * hidden + 2 * length * length * hidden


def _rows(examples: Sequence[Example], *, share: bool, hidden: int) -> list[_Row]:
    """One row an example; or, sharing, members of one opening together as long as that costs less than apart."""
    by_opening: dict[tuple[Segment, ...], list[int]] = {}
    for index, example in enumerate(examples):
        if example.sampled:
            by_opening.setdefault(_opening(example.segments), []).append(index)
    rows: list[_Row] = []
    for opening, members in by_opening.items():
        start = _length(opening)
        row: _Row | None = None
        for index in sorted(members, key=lambda i: (_fed(examples[i].segments), i)):
            alone = _Row(start, (index,), max(_fed(examples[index].segments), start))
            branch = alone.length - start
            if row is None:
                row = alone
            elif share and _cost(row.length + branch, hidden) < _cost(row.length, hidden) + _cost(alone.length, hidden):
                row = _Row(start, (*row.members, index), row.length + branch)
            else:
                rows.append(row)
                row = alone
        if row is not None:
            rows.append(row)
    return rows


def micro_batches(
    examples: Sequence[Example], *, max_tokens: int, merge: int = 2, share: bool = False, hidden: int = 0
) -> list[MicroBatch]:
    """Cut examples into micro-batches of at most `max_tokens` padded tokens each (a longer row goes alone).

    Rows of like length go together, so little is padded. `share` feeds the opening of trajectories from one prompt
    once, where that is cheaper for a model of `hidden` units; it needs an attention that takes a mask (eager, sdpa).
    Examples without sampled tokens are left out.
    """
    rows = sorted(_rows(examples, share=share, hidden=hidden), key=lambda row: (row.length, row.members))
    batches: list[MicroBatch] = []
    pending: list[_Row] = []
    for row in rows:
        if pending and row.length * (len(pending) + 1) > max_tokens:
            batches.append(_collate(pending, examples, merge))
            pending = []
        pending.append(row)
    if pending:
        batches.append(_collate(pending, examples, merge))
    return batches


class _Collector:
    """Gathers one micro-batch, row by row, in plain lists."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.ids: list[list[int]] = []
        self.positions: list[Tensor] = []
        self.branches: list[list[int]] = []
        self.first_feature: dict[ImageHash, int] = {}
        self.features = 0
        self.image_slots: list[int] = []
        self.image_sources: list[int] = []
        self.predictors: list[int] = []
        self.targets: list[int] = []
        self.recorded: list[float] = []
        self.proximal: list[float] = []
        self.advantages: list[float] = []
        self.lengths: list[int] = []
        self.owners: list[int] = []

    def add_row(self, row: _Row, examples: Sequence[Example], merge: int) -> None:
        ids: list[int] = []
        branches: list[int] = []
        positions = torch.zeros(3, self.width, dtype=torch.long)
        for branch, index in enumerate(row.members, start=1):
            segments = examples[index].segments
            skip = row.opening if branch > 1 else 0
            start, end = len(ids) - skip, _fed(segments)
            all_positions = mrope_positions(segments, merge=merge).ids
            positions[:, start + skip : start + end] = all_positions[:, skip:end]
            self._add_segments(examples[index], index, ids=ids, start=start, skip=skip, end=end, opening=row.opening)
            branches += [0 if start + t < row.opening else branch for t in range(skip, end)]
        pad = self.width - len(ids)
        self.ids.append(ids + [0] * pad)
        self.branches.append(branches + [-1] * pad)
        self.positions.append(positions)

    def _add_segments(
        self, example: Example, index: int, *, ids: list[int], start: int, skip: int, end: int, opening: int
    ) -> None:
        """Append the tokens [skip, end) of one trajectory; its token t stands at `start + t` of the row (opening: t)."""
        base = len(self.ids) * self.width
        self.proximal += example.proximal or ()
        length = example.sampled
        position = 0
        for segment in example.segments:
            size = _length([segment])
            fed = range(max(position, skip), min(position + size, end))
            if isinstance(segment, ImageSegment):
                if not fed:
                    position += size
                    continue
                if segment.image not in self.first_feature:
                    self.first_feature[segment.image] = self.features
                    self.features += segment.tokens
                first = self.first_feature[segment.image]
                self.image_slots += [base + start + t for t in fed]
                self.image_sources += [first + t - position for t in fed]
                ids += [0] * len(fed)
            else:
                ids += [segment.ids[t - position] for t in fed]
                if segment.sampled:
                    for offset, target in enumerate(segment.ids):
                        before = position + offset - 1
                        self.predictors.append(base + (before if before < opening else start + before))
                        self.targets.append(target)
                    self.recorded += segment.logprobs or ()
                    self.advantages += [example.advantage] * size
                    self.lengths += [length] * size
                    self.owners += [index] * size
            position += size


def _collate(rows: Sequence[_Row], examples: Sequence[Example], merge: int) -> MicroBatch:
    collector = _Collector(max(row.length for row in rows))
    for row in rows:
        collector.add_row(row, examples, merge)
    shared = any(len(row.members) > 1 for row in rows)
    return MicroBatch(
        ids=torch.tensor(collector.ids),
        positions=torch.stack(collector.positions, dim=1),
        branches=torch.tensor(collector.branches) if shared else None,
        images=tuple(collector.first_feature),
        image_slots=torch.tensor(collector.image_slots, dtype=torch.long),
        image_sources=torch.tensor(collector.image_sources, dtype=torch.long),
        predictors=torch.tensor(collector.predictors, dtype=torch.long),
        targets=torch.tensor(collector.targets, dtype=torch.long),
        recorded=torch.tensor(collector.recorded, dtype=torch.float32),
        proximal=torch.tensor(collector.proximal, dtype=torch.float32) if collector.proximal else None,
        advantages=torch.tensor(collector.advantages, dtype=torch.float32),
        lengths=torch.tensor(collector.lengths, dtype=torch.long),
        owners=torch.tensor(collector.owners, dtype=torch.long),
    )
