import asyncio
import os
import signal
import threading

import pytest

from agentvision.errors import TrainingStopped
from agentvision.train.guard import BadImages, BadSteps, Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_cancels_the_work_and_is_remembered(number):
    async def work(interruption):
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), number)
        with pytest.raises(asyncio.CancelledError), interruption.may_cancel():
            await asyncio.sleep(30)
        asyncio.current_task().uncancel()
        return interruption.received

    with Interruption() as interruption:
        assert asyncio.run(work(interruption)) is number


def test_a_signal_between_two_pieces_of_work_cancels_nothing_but_the_next():
    async def work(interruption):
        with interruption.may_cancel():
            await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)  # the handler runs at once, its callback in the next round of the loop
        await asyncio.sleep(0.02)  # what must not be abandoned: an update, the closing of the policy
        with pytest.raises(asyncio.CancelledError), interruption.may_cancel():
            await asyncio.sleep(30)
        asyncio.current_task().uncancel()
        return True

    with Interruption() as interruption:
        assert asyncio.run(work(interruption))


def test_a_signal_that_came_before_is_heard_by_what_never_waits():
    async def work(interruption):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError) as told, interruption.may_cancel():
            raise AssertionError("it is not begun")
        interruption.took(told.value)
        await asyncio.sleep(0)  # and is over

    with Interruption() as interruption:
        asyncio.run(work(interruption))


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_after_the_first_signal_the_next_one_kills_as_usual():
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received is signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_caught():
    before = signal.getsignal(signal.SIGTERM)

    def enter():
        with Interruption():
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()


def test_bad_steps_stop_the_run_only_when_they_come_in_a_row():
    bad = BadSteps(3)
    for _ in range(4):
        bad.bad("loss nan")
        bad.bad("loss nan")
        bad.good()
    assert bad.skipped == 8
    bad.bad("a")
    bad.bad("b")
    with pytest.raises(TrainingStopped, match="3 updates in a row"):
        bad.bad("gradient norm inf")


def test_bad_images_stop_a_run_when_they_are_many_and_a_large_share():
    few = BadImages(0.05)
    few.count(9, 9)  # of a handful of questions: no share to speak of yet
    few.count(0, 191)
    with pytest.raises(TrainingStopped, match=r"10 of 199 questions.*max_bad_share=0.05.*\(x: cut short\)"):
        BadImages(0.05).count(10, 199, "x: cut short")
    many = BadImages(0.05)
    many.count(10, 200)
    assert (many.bad, many.asked) == (10, 200)
