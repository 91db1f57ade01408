"""The state of every row in tensors, so that a decode step does nothing row by row in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agentvision.policies._jobs import Job
from agentvision.policies._rows import Move
from agentvision.policies._sampling import RowSampling, sample, stream_key, uniforms
from agentvision.policy import SamplingParams

_LENGTH, _POSITION, _COUNT, _LIMIT, _KEY, _TOKEN, _ALIVE, _TOP_K = range(8)
"""Columns of the numbers: tokens in the row, position of the next, tokens sampled this turn, their limit, the key of
the random stream, the token sampled last (not in the row yet), whether the row is at work, top-k."""
_TEMPERATURE, _TOP_P = range(2)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a row starts a turn with: `length` tokens in the row, the next of them at `position`."""

    job: Job
    length: int
    position: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a sampling step ended: slots of rows whose turn is over, and of rows whose logits were not finite."""

    ended: list[int]
    diverged: list[int]


class BatchState:
    """Numbers of each row, by slot, and the ids and log-probs that its turn has sampled."""

    def __init__(self, device: torch.device, *, ban: torch.Tensor, is_stop: torch.Tensor) -> None:
        """`ban` (V,) is 0 or -inf, `is_stop` (V,) says which ids end a turn."""
        self._ban, self._is_stop = ban, is_stop
        self._numbers = torch.zeros(0, 8, dtype=torch.int64, device=device)
        self._warmth = torch.zeros(0, 2, device=device)
        self._ids = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(0, 0, device=device)

    def _room(self, rows: int, columns: int) -> None:
        self._numbers = _grown(self._numbers, rows, self._numbers.shape[1])
        self._warmth = _grown(self._warmth, rows, self._warmth.shape[1])
        self._ids = _grown(self._ids, rows, columns)
        self._logprobs = _grown(self._logprobs, rows, columns)

    def enter(self, entries: Sequence[Entry], start: int) -> None:
        """Set the rows start, start + 1, … to the beginning of a turn."""
        numbers: list[list[int]] = []
        warmth: list[list[float]] = []
        for entry in entries:
            job, params = entry.job, entry.job.sampling
            key = stream_key(params.seed, job.turn)
            numbers.append([entry.length, entry.position, len(job.ids), params.max_tokens, key, 0, 1, params.top_k])
            warmth.append([params.temperature, params.top_p])
        stop = start + len(entries)
        # One column more than the limit: an idle row is computed along, and what it samples has to go somewhere.
        self._room(stop, max(e.job.sampling.max_tokens for e in entries) + 1)
        self._numbers[start:stop] = torch.tensor(numbers, device=self._numbers.device)
        self._warmth[start:stop] = torch.tensor(warmth, device=self._warmth.device)

    def move(self, moves: Sequence[Move]) -> None:
        moves = [m for m in moves if m.source < len(self._numbers)]
        if not moves:
            return
        self._room(max(m.target for m in moves) + 1, 0)
        source = torch.tensor([m.source for m in moves], device=self._numbers.device)
        target = torch.tensor([m.target for m in moves], device=self._numbers.device)
        for tensor in (self._numbers, self._warmth, self._ids, self._logprobs):
            tensor[target] = tensor[source]

    def idle(self, slot: int) -> None:
        """The row no longer takes part; it is computed along until rows move."""
        if slot < len(self._numbers):
            self._numbers[slot, _ALIVE] = 0

    def tokens(self, rows: int) -> torch.Tensor:
        """(B,) the ids sampled last in rows 0 … rows-1, which go into the next step."""
        return self._numbers[:rows, _TOKEN]

    def positions(self, rows: int) -> torch.Tensor:
        """(3, B, 1) where those ids stand: a text token's three positions are equal."""
        return self._numbers[None, :rows, _POSITION, None].expand(3, -1, -1)

    def lengths(self, rows: int) -> torch.Tensor:
        """(B,) tokens that the rows hold."""
        return self._numbers[:rows, _LENGTH]

    def advance(self, rows: int) -> None:
        """The tokens sampled last are in their rows now."""
        self._numbers[:rows, _LENGTH : _POSITION + 1] += self._numbers[:rows, _ALIVE, None]

    def sample(self, start: int, stop: int, logits: torch.Tensor, params: Sequence[SamplingParams]) -> Verdicts:
        """Sample the next token of rows start … stop-1 from `logits` (B, V). `params` are those of the rows at work."""
        numbers, warmth = self._numbers[start:stop], self._warmth[start:stop]
        count, alive = numbers[:, _COUNT], numbers[:, _ALIVE]
        drawn = sample(
            logits,
            self._ban,
            uniforms(numbers[:, _KEY], count),
            RowSampling(
                temperature=warmth[:, _TEMPERATURE],
                top_p=warmth[:, _TOP_P],
                top_k=numbers[:, _TOP_K],
                any_greedy=any(p.temperature == 0 for p in params),
                any_random=any(p.temperature > 0 for p in params),
                any_filter=any(p.top_p < 1 or p.top_k > 0 for p in params),
            ),
        )
        place = torch.arange(start, stop, device=numbers.device), count
        self._ids[place], self._logprobs[place] = drawn.ids, drawn.logprobs
        numbers[:, _TOKEN] = drawn.ids
        count += alive
        over = self._is_stop[drawn.ids] | (count >= numbers[:, _LIMIT])
        verdicts = (alive * (over + 2 * ~drawn.logprobs.isfinite())).tolist()  # the step's one wait for the device
        return Verdicts(
            ended=[start + k for k, v in enumerate(verdicts) if v == 1],
            diverged=[start + k for k, v in enumerate(verdicts) if v > 1],
        )

    def said(self, slots: Sequence[int], *, columns: int) -> list[tuple[list[int], list[float]]]:
        """Each row's sampled ids and log-probs, `columns` of them, valid or not."""
        rows = torch.tensor(slots, device=self._ids.device)
        ids, logprobs = self._ids[rows, :columns].tolist(), self._logprobs[rows, :columns].tolist()
        return list(zip(ids, logprobs, strict=True))


def _grown(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The tensor (R, C), or a larger one of zeros that holds it at its top left."""
    if rows <= tensor.shape[0] and columns <= tensor.shape[1]:
        return tensor
    grown = tensor.new_zeros(max(rows, tensor.shape[0]), max(columns, tensor.shape[1]))
    grown[: tensor.shape[0], : tensor.shape[1]] = tensor
    return grown
