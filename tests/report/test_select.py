"""The choice of trajectories shows every kind before it shows one twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentvision.report.select import Facts, choose

facts = st.builds(
    Facts,
    step=st.integers(0, 60),
    correct=st.none() | st.booleans(),
    called=st.booleans(),
    hard=st.none() | st.booleans(),
)


@given(st.lists(facts, max_size=200), st.integers(0, 60))
def test_a_choice_is_of_the_right_size_without_repeats_and_repeatable(pool: list[Facts], most: int) -> None:
    chosen = choose(pool, most)
    assert len(chosen) == min(most, len(pool))
    assert chosen == sorted(set(chosen))
    assert chosen == choose(pool, most)


def test_rare_kinds_and_all_times_are_shown() -> None:
    pool = [Facts(step, True, False, False) for step in range(1, 61) for _ in range(20)]
    pool[700] = Facts(36, False, True, True)
    steps = [pool[index].step for index in choose(pool, 12)]
    assert 700 in choose(pool, 12)
    assert min(steps) == 1
    assert max(steps) == 60
    assert sum(20 < step <= 40 for step in steps) >= 3


def test_questions_are_not_repeated_while_there_are_others() -> None:
    pool = [Facts(1, True, False, False, sample=f"q{k // 8}") for k in range(80)]
    assert len({pool[index].sample for index in choose(pool, 10)}) == 10


def test_nothing_is_chosen_from_nothing() -> None:
    assert choose([], 5) == []
