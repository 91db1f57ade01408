"""The circuit breaker, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from agentvision.chat import ChatDown, ChatRefused
from agentvision.chat.breaker import FAILURES, PROBE_EVERY_S, Breaker
from agentvision.chat.errors import Fault


@dataclass
class Provider:
    """Up, or not; an attempt takes `seconds`."""

    seconds: float = 0.1
    up: bool = False
    sent: list[float] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0

    async def attempt(self, breaker: Breaker) -> None:
        async with breaker.attempt():
            self.sent.append(asyncio.get_running_loop().time())
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            try:
                await asyncio.sleep(self.seconds)
            finally:
                self.in_flight -= 1
            if not self.up:
                raise Fault("server_error", "no")


async def opened(provider: Provider, breaker: Breaker, failures: int = FAILURES) -> None:
    for _ in range(failures):
        with pytest.raises(Fault):
            await provider.attempt(breaker)


def test_it_opens_after_failures_in_a_row_and_not_after_some(virtual):
    async def main() -> None:
        provider, breaker = Provider(), Breaker("it", 30)
        for _ in range(5):
            await opened(provider, breaker, FAILURES - 1)
            provider.up = True
            await provider.attempt(breaker)
            provider.up = False
        assert breaker.state == "closed"
        await opened(provider, breaker)
        assert breaker.state == "open" and breaker.opened == 1

    virtual(main())


def test_a_refusal_shows_that_the_provider_is_alive_and_a_cancellation_shows_nothing(virtual):
    async def main() -> None:
        provider, breaker = Provider(), Breaker("it", 30)
        await opened(provider, breaker, FAILURES - 1)
        with pytest.raises(ChatRefused):
            async with breaker.attempt():
                raise ChatRefused("bad key", reason="unauthorised")
        await opened(provider, breaker, FAILURES - 1)
        with pytest.raises(asyncio.CancelledError):
            async with breaker.attempt():
                raise asyncio.CancelledError
        with pytest.raises(Fault):
            async with breaker.attempt():
                raise Fault("server_error", "the last that is missing")
        assert breaker.state == "open"

    virtual(main())


def test_open_it_sends_one_probe_at_a_time_and_all_pass_when_one_succeeds(virtual):
    async def main() -> None:
        provider, breaker = Provider(), Breaker("it", 30)
        await opened(provider, breaker)
        provider.sent.clear()
        provider.most, provider.seconds = 0, 3.0
        waiting = [asyncio.ensure_future(provider.attempt(breaker)) for _ in range(20)]
        await asyncio.sleep(PROBE_EVERY_S + 0.1)
        assert breaker.state == "half-open" and provider.in_flight == 1
        await asyncio.sleep(5)
        assert provider.most == 1 and 1 < len(provider.sent) <= 3
        provider.up = True
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert breaker.state == "closed" and sum(result is None for result in results) >= 18
        assert provider.most > 1, "closed, they run side by side again"

    virtual(main())


def test_nobody_waits_longer_than_patience_since_it_began_to_fail(virtual):
    async def main() -> None:
        provider, breaker = Provider(), Breaker("it", 30)
        await opened(provider, breaker)
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(*[provider.attempt(breaker) for _ in range(50)], return_exceptions=True)
        down = [result for result in results if isinstance(result, ChatDown)]
        assert len(down) + len(provider.sent) - FAILURES == 50 and 29 <= loop.time() <= 31
        assert (
            down[0].reason == "down"
            and "server_error" in str(down[0])
            and "it has been failing for 30 s" in str(down[0])
        )
        with pytest.raises(Fault):
            await asyncio.sleep(PROBE_EVERY_S)
            await provider.attempt(breaker)  # the next probe
        before = loop.time()
        with pytest.raises(ChatDown):
            await provider.attempt(breaker)
        with pytest.raises(ChatDown):
            breaker.check()
        assert loop.time() == before, "at once"
        await asyncio.sleep(PROBE_EVERY_S)
        breaker.check()  # a probe is due: do not turn it away
        provider.up = True
        await provider.attempt(breaker)
        assert breaker.state == "closed"
        breaker.check()

    virtual(main())


def test_a_server_that_only_hangs_is_noticed_within_patience_and_one_deadline(virtual):
    async def main() -> float:
        provider, breaker = Provider(seconds=30), Breaker("it", 30)
        for _ in range(3):
            with pytest.raises((Fault, ChatDown)):
                await provider.attempt(breaker)
        assert breaker.state == "open"
        return asyncio.get_running_loop().time()

    assert virtual(main()) == 60


def test_a_probe_that_is_cancelled_lets_the_next_go(virtual):
    async def main() -> None:
        provider, breaker = Provider(), Breaker("it", 30)
        await opened(provider, breaker)
        provider.seconds = 10
        probe = asyncio.ensure_future(provider.attempt(breaker))
        await asyncio.sleep(PROBE_EVERY_S + 0.1)
        assert breaker.state == "half-open"
        other = asyncio.ensure_future(provider.attempt(breaker))
        probe.cancel()
        provider.up = True
        await other
        assert breaker.state == "closed"

    virtual(main())


def test_an_old_attempt_that_fails_late_does_not_date_the_outage_back(virtual):
    async def main() -> None:
        breaker = Breaker("it", 30)
        slow, quick = Provider(seconds=100), Provider(up=True)
        late = asyncio.ensure_future(slow.attempt(breaker))
        for _ in range(99):
            await quick.attempt(breaker)
            await asyncio.sleep(0.9)
        quick.up = False
        with pytest.raises(Fault):
            await late
        with pytest.raises(Fault):
            await quick.attempt(breaker)
        assert breaker.state == "closed", "two failures, but it answered two seconds ago"

    virtual(main())


@pytest.mark.parametrize("pause_s", [0.5, 1.5, 4.0])
def test_a_call_that_probed_in_vain_does_not_probe_again_with_its_other_attempts(virtual, pause_s):
    async def main() -> float:
        provider, breaker = Provider(seconds=20), Breaker("it", 30)

        async def call() -> None:
            for attempt in range(4):
                try:
                    async with breaker.attempt(again=attempt > 0):
                        await asyncio.sleep(provider.seconds)
                        raise Fault("timeout", "no")
                except Fault:
                    await asyncio.sleep(pause_s)

        results = await asyncio.gather(*[call() for _ in range(100)], return_exceptions=True)
        assert all(isinstance(result, ChatDown) for result in results)
        return asyncio.get_running_loop().time()

    assert virtual(main()) < 50, "one deadline, a probe, and the pauses between"
