import pytest

from agentvision.errors import DataError
from agentvision.train.prompts import PromptStream
from agentvision.types import Sample

SAMPLES = [Sample(str(i), "?") for i in range(10)]


def ids(samples):
    return [s.id for s in samples]


def test_an_epoch_draws_every_prompt_once_in_an_order_of_its_own():
    stream = PromptStream(SAMPLES, seed=1)
    first, second = ids(stream.take(10)), ids(stream.take(10))
    assert sorted(first) == sorted(second) == sorted(ids(SAMPLES))
    assert first != second


def test_the_cursor_is_all_it_takes_to_continue():
    whole = PromptStream(SAMPLES, seed=1)
    expected = ids(whole.take(33))
    half = PromptStream(SAMPLES, seed=1)
    start = ids(half.take(17))
    assert start + ids(PromptStream(SAMPLES, seed=1, cursor=half.cursor).take(16)) == expected


def test_the_seed_changes_the_order():
    assert ids(PromptStream(SAMPLES, seed=1).take(10)) != ids(PromptStream(SAMPLES, seed=2).take(10))


def test_ranks_share_one_shuffle():
    ranks = [PromptStream(SAMPLES, seed=1, rank=r, world=2) for r in range(2)]
    drawn = [ids(rank.take(5)) for rank in ranks]
    assert sorted(drawn[0] + drawn[1]) == sorted(ids(SAMPLES))


def test_no_questions_is_a_clear_error():
    with pytest.raises(DataError, match="no questions"):
        PromptStream([], seed=1)
