"""The one event loop on which every model and every inference server is asked, in a daemon thread of its own.

HTTP clients, semaphores and litellm's caches belong to the loop that first used them, and break on the next: in a second
`asyncio.run`, in another thread, or when a new loop gets the address of a dead one. So none of them ever sees a caller's
loop. It also keeps the milliseconds that litellm computes for each request off the loops of rollouts.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


async def on_network(work: Coroutine[Any, Any, T]) -> T:
    """Await it on the network's loop, from any loop (that one too); cancelled here, it is cancelled there."""
    loop = _network_loop()
    if asyncio.get_running_loop() is loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _network_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _starting:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="chat-network", daemon=True).start()
        return _loop
