"""Sampling one token a row, exactly and reproducibly.

Banned ids leave the distribution before it is normalised, so the log-prob recorded is the one sampled from. A row's
draw depends on its own (seed, turn, index) alone: uniforms come from a counter, not from a generator, so neither batch
mates nor the order of events change a rollout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Constants of SplitMix64 (Steele, Lea and Flood 2014), a counter-based generator of 64-bit words."""


def _signed(word: int) -> int:
    """The same 64 bits as a signed integer, which is what an int64 tensor holds."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    return word ^ (word >> 31)


def stream_key(seed: int, turn: int) -> int:
    """The 64-bit key (as a signed integer) of the stream that one turn of one rollout draws from."""
    return _signed(_mix((_mix((seed + _GOLDEN) & _WORD) + (turn + 1) * _GOLDEN) & _WORD))


def uniforms(keys: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(B,) float64 in [0, 1): the draw number `indices` (B,) of each row's stream `keys` (B,), both int64."""
    z = keys + (indices + 1) * _signed(_GOLDEN)
    # An int64 tensor shifts arithmetically: the masks drop the copies of the sign bit.
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(_MIX_1)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(_MIX_2)
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return ((z >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


@dataclass(frozen=True, slots=True)
class Draws:
    """`ids` (B,) int64 and their `logprobs` (B,) float32 under the distribution sampled from.

    A log-prob that is not finite tells of a row whose logits were not.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How each row samples: `temperature`, `top_p` (B,) float32, `top_k` (B,) int64 (0: off)."""

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    any_greedy: bool
    any_random: bool
    any_filter: bool


def sample(logits: torch.Tensor, ban: torch.Tensor, draws: torch.Tensor, rows: RowSampling) -> Draws:
    """Draw one id a row by inverting the distribution function at `draws`.

    `logits` (B, V); `ban` (V,) float32, 0 or -inf; `draws` (B,) float64 in [0, 1). Temperature 0 takes the most likely
    id and records its log-prob at temperature 1.
    """
    greedy = rows.temperature == 0
    scale = torch.where(greedy, 1.0, rows.temperature)
    logprobs = torch.log_softmax(logits.float() / scale[:, None] + ban, dim=-1)  # (B, V)
    if rows.any_filter:
        logprobs = _filter(logprobs, rows)
    if rows.any_random:
        cumulative = logprobs.double().exp_().cumsum(dim=-1)
        # right=True: the first id whose cumulative mass exceeds the draw, which an id of no mass never is.
        ids = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)[:, 0]
        ids = ids.clamp_(max=logits.shape[1] - 1)
        if rows.any_greedy:
            ids = torch.where(greedy, logprobs.argmax(dim=-1), ids)
    else:
        ids = logprobs.argmax(dim=-1)
    return Draws(ids, logprobs.gather(1, ids[:, None])[:, 0])


def _filter(logprobs: torch.Tensor, rows: RowSampling) -> torch.Tensor:
    """Keep each row's `top_k` most likely ids, of those the smallest set of mass `top_p`, and normalise again."""
    ranked, order = logprobs.sort(dim=-1, descending=True)
    rank = torch.arange(logprobs.shape[1], device=logprobs.device)
    drop = (rank >= rows.top_k[:, None]) & (rows.top_k[:, None] > 0)
    mass = ranked.masked_fill(drop, -torch.inf).softmax(dim=-1)
    drop |= (mass.cumsum(dim=-1) - mass >= rows.top_p[:, None]) & (rows.top_p[:, None] < 1)
    drop[:, 0] = False
    dropped = torch.zeros_like(drop).scatter_(1, order, drop)
    return logprobs.masked_fill(dropped, -torch.inf).log_softmax(dim=-1)
