"""Single flight: whoever comes or goes, each gets the answer, and nobody asks twice for what is under way."""

import asyncio
import threading

import pytest

from agentvision.rewards.judge.flight import SingleFlight


class Work:
    """Counts how often it was started and cancelled; waits for `gate`."""

    def __init__(self):
        self.started = self.cancelled = 0
        self.gate = asyncio.Event()

    async def __call__(self):
        self.started += 1
        number = self.started
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number


async def soon():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_that_overlap_are_one_and_later_ones_are_new():
    flight, work = SingleFlight(), Work()
    callers = [asyncio.create_task(flight("a", work)) for _ in range(5)]
    other = asyncio.create_task(flight("b", work))
    await soon()
    work.gate.set()
    assert sorted(await asyncio.gather(*callers)) == [(1, False), *[(1, True)] * 4]
    assert await other == (2, False)
    assert await flight("a", work) == (3, False)


@pytest.mark.parametrize("leaver", [0, 1])
async def test_a_caller_who_is_cancelled_takes_nobodys_answer_away(leaver):
    flight, work = SingleFlight(), Work()
    callers = [asyncio.create_task(flight("a", work)) for _ in range(3)]
    await soon()
    callers[leaver].cancel()
    await soon()
    assert callers[leaver].cancelled() and not work.cancelled
    work.gate.set()
    assert {result for result, _ in await asyncio.gather(*(c for c in callers if c is not callers[leaver]))} == {1}
    assert work.started == 1


async def test_work_that_nobody_waits_for_is_cancelled_and_the_next_caller_starts_anew():
    flight, work = SingleFlight(), Work()
    callers = [asyncio.create_task(flight("a", work)) for _ in range(2)]
    await soon()
    for caller in callers:
        caller.cancel()
    newcomer = asyncio.create_task(flight("a", work))  # before the old work has noticed
    await soon()
    latecomer = asyncio.create_task(flight("a", work))
    await soon()
    work.gate.set()
    assert await newcomer == (2, False) and await latecomer == (2, True)
    assert work.cancelled == 1


async def test_what_the_work_raises_reaches_all_and_is_not_kept():
    flight = SingleFlight()

    async def fail():
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(*(flight("a", fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    work = Work()
    work.gate.set()
    assert await flight("a", work) == (1, False)


def test_each_event_loop_asks_for_itself():
    flight, results = SingleFlight(), []
    barrier = threading.Barrier(4)

    async def both():
        async def work():
            barrier.wait(10)  # all four loops are in the middle of their work
            return threading.get_ident()

        return [result for result, _ in await asyncio.gather(flight("a", work), flight("a", work))]

    threads = [threading.Thread(target=lambda: results.append(asyncio.run(both()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(pair) for pair in results}) == 4 and all(len(set(pair)) == 1 for pair in results)
