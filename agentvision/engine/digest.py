"""Numbers that tell whether two copies of the weights are the same, bit for bit. Pure functions over tensors.

Both are sums modulo 2^64, so they are exact, need no order of computation and run on any device. They are made against
accidents (a tensor dropped, cut, swapped, a bit flipped), not against an adversary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 1 << 22
"""Elements widened to int64 at a time: bounds the memory beside the tensor itself."""
_ODD = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: odd, with bits all over
_MIX = -4658895280553007687  # 0xBF58476D1CE4E5B9
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensor_digest(tensor: Tensor) -> int:
    """Of one tensor's bits and where they stand: of any type and shape, a signed 64-bit integer.

    Any single change, and any swap of two elements, gives another number.

    Σ x_i · w_i with w_i odd: a change δ of one element moves the sum by δ·w_i, which is not 0 modulo 2^64; a swap moves it
    by (x_i - x_j)·(w_i - w_j), neither of which has enough factors of two to vanish where elements have up to four bytes.
    """
    bits = _bits(tensor).flatten()
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), _CHUNK):
        piece = bits[start : start + _CHUNK].to(torch.int64)
        at = torch.arange(start, start + piece.numel(), dtype=torch.int64, device=tensor.device)
        total += (piece * ((2 * at + 1) * _ODD)).sum()
    return int(total)


def rows_digest(tensors: Iterable[Tensor]) -> int:
    """Of the rows of all these tensors, whatever tensor each stands in, and in any order; rows of zeros do not count.

    An engine joins matrices that a checkpoint keeps apart (queries, keys and values; gate and up) and pads vocabularies.
    That changes neither the set of rows nor a row's contents, so both sides can compute this and compare.
    """
    total = 0
    for tensor in tensors:
        bits = _bits(tensor)
        rows = bits.reshape(bits.shape[0], -1) if bits.ndim > 1 else bits.reshape(-1, 1)
        step = max(1, _CHUNK // max(rows.shape[1], 1))
        at = torch.arange(rows.shape[1], dtype=torch.int64, device=tensor.device)
        weights = (2 * at + 1) * _ODD
        for start in range(0, rows.shape[0], step):
            sums = (rows[start : start + step].to(torch.int64) * weights).sum(1)
            total += int(((sums ^ (sums >> 31)) * _MIX).sum())
    return wrapped(total)


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous()
    return tensor.view(_INTEGERS[tensor.element_size()])


def wrapped(number: int) -> int:
    """A sum of digests as one: a signed 64-bit integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
