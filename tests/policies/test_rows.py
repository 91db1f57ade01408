"""Rows and the pool: content follows its row, reads come before writes, what was overwritten is not found again."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentvision.policies._jobs import codes_of, common_prefix
from agentvision.policies._kv_pool import KVPool, KVShape
from agentvision.policies._rows import Prefix, RowTable
from agentvision.types import ImageSegment, TextSegment

SHAPE = KVShape(layers=2, heads=1, size=4, dtype=torch.float32, device=torch.device("cpu"))


def fill(pool, row, marks):
    """Mark a row's tokens: layer k holds mark + k."""
    window = pool.window(row, row + 1, length=len(marks))
    content = torch.tensor(marks, dtype=torch.float32).view(1, -1, 1, 1).expand(-1, -1, 1, 4)
    for layer in range(2):
        window.write_left(layer, content + layer, -content - layer)


def marks_of(pool, row, length):
    window = pool.window(row, row + 1, length=length)
    for layer in range(2):
        assert torch.equal(window.values[layer], -window.keys[layer])
        assert torch.equal(window.keys[layer], window.keys[0] + layer)
    return window.keys[0][0, :, 0, 0].tolist()


def test_growing_keeps_what_is_there():
    pool = KVPool(SHAPE)
    pool.reserve(rows=2, capacity=3)
    fill(pool, 1, [5, 6, 7])
    pool.reserve(rows=9, capacity=200)
    assert pool.rows == 9
    assert pool.capacity >= 200
    assert marks_of(pool, 1, 3) == [5, 6, 7]
    pool.reserve(rows=1, capacity=1)
    assert pool.rows == 9


def test_a_move_reads_everything_before_it_writes():
    pool = KVPool(SHAPE)
    pool.reserve(rows=3, capacity=2)
    for row in range(3):
        fill(pool, row, [10 * row, 10 * row + 1])
    pool.move([0, 1, 2], [1, 2, 0], length=2)
    assert [marks_of(pool, row, 2)[0] for row in range(3)] == [20, 0, 10]


def test_each_row_is_written_at_its_own_columns():
    pool = KVPool(SHAPE)
    pool.reserve(rows=2, capacity=6)
    new = torch.ones(2, 2, 1, 4)
    pool.window(0, 2, length=6).write(0, torch.tensor([[0, 1], [3, 4]]), new, new)
    assert pool.window(0, 2, length=6).keys[0][:, :, 0, 0].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]


@given(data=st.data())
def test_content_follows_its_row(data):
    table = RowTable(SHAPE, max_rows=8)
    table.grow(data.draw(st.integers(1, 8)))
    table.pool.reserve(rows=0, capacity=4)
    held = {}
    for row in table.rows:
        length = data.draw(st.integers(0, 4))
        row.codes = np.arange(length) + 10 * row.slot
        held[id(row)] = row.codes.tolist()
        fill(table.pool, row.slot, held[id(row)]) if length else None
    for _ in range(3):
        start = data.draw(st.integers(0, len(table.rows) - 1))
        chosen = data.draw(st.permutations(table.rows))[: data.draw(st.integers(0, len(table.rows) - start))]
        before = {id(row): row.slot for row in table.rows}
        moves = table.place(chosen, start, length=0)
        assert [table.rows[start + k] is row for k, row in enumerate(chosen)] == [True] * len(chosen)
        assert [row.slot for row in table.rows] == list(range(len(table.rows)))
        assert {(m.source, m.target) for m in moves} == {
            (before[id(r)], r.slot) for r in table.rows if before[id(r)] != r.slot
        }
        for row in table.rows:
            assert marks_of(table.pool, row.slot, len(held[id(row)])) == held[id(row)]


def test_overwritten_prompts_are_forgotten_and_shorter_ones_stay():
    table = RowTable(SHAPE, max_rows=2)
    table.grow(1)
    row = table.rows[0]
    for key, length in ((b"short", 3), (b"long", 9)):
        table.share(key, Prefix(row, length, torch.zeros(1), length))
    table.forget(row, beyond=5)
    assert table.find(b"short") is not None
    assert table.find(b"long") is None
    table.forget_all()
    assert table.find(b"short") is None


def test_rows_that_others_could_copy_from_are_taken_last():
    table = RowTable(SHAPE, max_rows=3)
    table.grow(3)
    table.share(b"prompt", Prefix(table.rows[0], 3, torch.zeros(1), 3))
    table.bind(table.rows[1], "busy")
    assert [row.slot for row in table.free()] == [2, 0]


@given(a=st.lists(st.integers(0, 2), max_size=6), b=st.lists(st.integers(0, 2), max_size=6))
def test_the_common_prefix(a, b):
    n = common_prefix(np.array(a), np.array(b))
    assert a[:n] == b[:n]
    assert n in (len(a), len(b)) or a[n] != b[n]


def test_codes_tell_images_from_text_and_from_each_other():
    def image(h):
        return ImageSegment(1, h * 32, (1, 2, 4), 2)

    codes = codes_of([TextSegment((7, 8)), image("ab"), TextSegment((9,)), image("cd")])
    assert codes[[0, 1, 4]].tolist() == [7, 8, 9]
    assert (codes[[2, 3, 5, 6]] < 0).all()
    assert codes[2] == codes[3] != codes[5]
