"""Keys and values of all sessions, in ragged rows of one padded tensor a layer.

A row holds one session's tokens from the left; what lies right of its length is garbage that no mask admits. The rows
at work stand side by side, so a forward pass reads and writes them as a view: no copy, no gather. Rows move only when
the set at work changes. Layout (rows, tokens, heads, size): a row's prefix is one contiguous block, cheap to copy for
the siblings that share it. Paging, as vLLM does it, is left to vLLM; the price here is padding to the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

_TOKEN_BLOCK = 64


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token's keys (and as much again, its values) take in one layer: `heads` × `size`."""

    layers: int
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.heads * self.size * self.dtype.itemsize


class KVPool:
    """`rows` × `capacity` tokens of keys and values; grows on demand and never shrinks (drop it to free the memory)."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.rows = 0
        self.capacity = 0
        self._keys: list[torch.Tensor] = [self._empty(0, 0) for _ in range(shape.layers)]  # (rows, capacity, H, D)
        self._values: list[torch.Tensor] = [self._empty(0, 0) for _ in range(shape.layers)]

    def _empty(self, rows: int, capacity: int) -> torch.Tensor:
        # Zeros, not empty memory: masked garbage still takes part as 0 · value, and 0 · NaN is NaN.
        size = (rows, capacity, self.shape.heads, self.shape.size)
        return torch.zeros(size, dtype=self.shape.dtype, device=self.shape.device)

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from self._keys
        yield from self._values

    @property
    def nbytes(self) -> int:
        return self.rows * self.capacity * self.shape.bytes_per_token

    def reserve(self, *, rows: int, capacity: int) -> None:
        """Make room for so many rows of so many tokens, keeping what is there."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        rows = max(rows, self.rows)
        if capacity > self.capacity:  # in blocks and by a quarter at least, so that decoding rarely grows it
            wanted = max(capacity, self.capacity + self.capacity // 4)
            capacity = -(-wanted // _TOKEN_BLOCK) * _TOKEN_BLOCK
        capacity = max(capacity, self.capacity)
        for layers in (self._keys, self._values):
            for k, old in enumerate(layers):
                new = self._empty(rows, capacity)
                new[: self.rows, : self.capacity] = old
                layers[k] = new
        self.rows, self.capacity = rows, capacity

    def move(self, source: Sequence[int], target: Sequence[int], *, length: int) -> None:
        """Copy the first `length` tokens of each source row to its target row, all reads before all writes."""
        if not source or not length:
            return
        src = torch.tensor(source, device=self.shape.device)
        dst = torch.tensor(target, device=self.shape.device)
        for tensor in self._tensors():
            part = tensor[:, :length]
            part.index_copy_(0, dst, part.index_select(0, src))

    def window(self, start: int, stop: int, *, length: int) -> KVWindow:
        """Rows start … stop-1 and their first `length` tokens, as views."""
        return KVWindow(
            [k[start:stop, :length] for k in self._keys],
            [v[start:stop, :length] for v in self._values],
        )


@dataclass(frozen=True, slots=True)
class KVWindow:
    """Views of some neighbouring rows: per layer keys and values (B, length, H, D)."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def length(self) -> int:
        return self.keys[0].shape[1]

    def write(self, layer: int, columns: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put `key` and `value` (B, T, H, D) at `columns` (B, T) of each row."""
        rows = torch.arange(columns.shape[0], device=columns.device)[:, None]
        self.keys[layer][rows, columns] = key
        self.values[layer][rows, columns] = value

    def write_left(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put `key` and `value` (B, T, H, D) at the left end of each row."""
        self.keys[layer][:, : key.shape[1]] = key
        self.values[layer][:, : value.shape[1]] = value
