"""Digests tell any change from none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentvision.engine.digest import rows_digest, tensor_digest

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]


def slow_digest(tensor: torch.Tensor) -> int:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.contiguous().view(integers[tensor.element_size()]).flatten().tolist()
    total = sum(x * (2 * i + 1) * 0x9E3779B97F4A7C15 for i, x in enumerate(bits)) % 2**64
    return total - 2**64 if total >= 2**63 else total


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_sum_that_its_docstring_gives(dtype):
    tensor = (torch.randn(7, 5, 3) * 50).abs().to(dtype)
    assert tensor_digest(tensor) == slow_digest(tensor)


@given(st.integers(0, 2**32), st.integers(0, 59), st.integers(0, 31))
def test_a_flipped_bit_shows(seed, at, bit):
    tensor = torch.randn(60, generator=torch.Generator().manual_seed(seed))
    flipped = tensor.clone()
    flipped.view(torch.int32)[at] ^= -(1 << 31) if bit == 31 else 1 << bit
    assert tensor_digest(tensor) != tensor_digest(flipped)
    assert rows_digest([tensor.view(6, 10)]) != rows_digest([flipped.view(6, 10)])


@given(st.integers(0, 2**32), st.integers(0, 59), st.integers(0, 59))
def test_two_swapped_elements_show(seed, a, b):
    tensor = torch.randn(60, generator=torch.Generator().manual_seed(seed))
    swapped = tensor.clone()
    swapped[a], swapped[b] = tensor[b].clone(), tensor[a].clone()
    assert (tensor_digest(tensor) != tensor_digest(swapped)) == (not torch.equal(tensor, swapped))


def test_chunks_change_nothing(monkeypatch):
    tensor = torch.randn(33, 17)
    whole = tensor_digest(tensor), rows_digest([tensor])
    monkeypatch.setattr("agentvision.engine.digest._CHUNK", 40)
    assert (tensor_digest(tensor), rows_digest([tensor])) == whole


def test_rows_count_wherever_they_stand_and_padding_does_not():
    q, k = torch.randn(4, 8), torch.randn(2, 8)
    joined = torch.cat([k, q, torch.zeros(3, 8)])
    assert rows_digest([q, k]) == rows_digest([joined])
    bias = torch.randn(6)
    assert rows_digest([bias]) == rows_digest([bias[:2], bias[2:]])


def test_rows_whose_halves_are_swapped_are_others():
    q = torch.randn(4, 8)
    assert rows_digest([q]) != rows_digest([torch.cat([q[:, 4:], q[:, :4]], 1)])
