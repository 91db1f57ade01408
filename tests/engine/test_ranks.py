"""What the training processes tell one another."""

from agentvision.engine.ranks import raise_any, rank, ranks, told_by_all, told_by_first
from agentvision.engine.types import EngineLost, SyncError
from agentvision.errors import AgentVisionError

from ..launch import on_ranks


def raised(error):
    try:
        raise_any(error)
    except AgentVisionError as found:
        return type(found).__name__, str(found)
    return None


def conversation():
    number = rank()
    return [
        ranks(),
        told_by_first(f"of {number}"),
        told_by_all(number),
        raised(None),
        raised(SyncError("it did not arrive") if number == 1 else None),
        raised(EngineLost("gone") if number == 0 else SyncError("it did not arrive")),
    ]


def test_all_hear_what_one_says_and_what_fails_on_one_is_raised_on_all(tmp_path):
    first, second = on_ranks(conversation, folder=tmp_path)
    assert first[:3] == second[:3] == [2, "of 0", [0, 1]]
    assert first[3] is second[3] is None
    assert first[4] == ("SyncError", "rank 1: it did not arrive") and second[4] == ("SyncError", "it did not arrive")
    assert first[5] == ("EngineLost", "gone") and second[5] == ("SyncError", "it did not arrive")


def test_a_process_alone_talks_to_itself():
    assert (ranks(), rank(), told_by_first(3), told_by_all(3)) == (1, 0, 3, [3])
    assert raised(None) is None and raised(SyncError("no")) == ("SyncError", "no")
