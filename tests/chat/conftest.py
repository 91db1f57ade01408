"""Clocks that no test has to wait for, and a first call before anything is timed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agentvision.chat import Chat
from tests.openai_server import OpenAIServer


class VirtualLoop(asyncio.SelectorEventLoop):
    """When nothing is left to do, it is the time of the next thing at once. For code that reads no clock but the loop's."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            due = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            self.now = max(self.now, min(due, default=self.now))
        super()._run_once()  # type: ignore[misc]


@pytest.fixture
def virtual() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine in virtual time, beginning at 0."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(coroutine)

    return run


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """litellm imports half of itself during the first call, which takes longer than the deadlines of these tests."""
    with OpenAIServer() as server:
        asyncio.run(Chat("openai/warm", api_base=server.url, timeout_s=120).ask([{"role": "user", "content": "?"}]))
