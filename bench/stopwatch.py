"""Where a framework step's time goes: functions wrapped while it is measured, each second counted once a thread.

A span's time leaves out the spans inside it. Threads overlap (the policy's engine, the event loop, the workers that
read images and run tools), so spans of different threads may sum to more than the clock.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any


class Stopwatch:
    """`seconds` and `calls` by the name of a span. `clock` is the wall's; `time.thread_time` counts the processor's."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._clock = clock
        self._lock = threading.Lock()
        self._local = threading.local()

    @contextmanager
    def on(self, spans: Iterable[tuple[Any, str, str]]) -> Iterator[None]:
        """Measure `(owner, attribute, span)` inside the `with`; the attribute is a plain function or a method."""
        before = [(owner, attribute, vars(owner)[attribute]) for owner, attribute, _ in spans]
        for owner, attribute, span in spans:
            setattr(owner, attribute, self._measured(vars(owner)[attribute], span))
        try:
            yield
        finally:
            for owner, attribute, function in before:
                setattr(owner, attribute, function)

    def _measured(self, function: Callable[..., Any], span: str) -> Callable[..., Any]:
        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            inner = self._inner()
            inner.append(0.0)
            started = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent = self._clock() - started
                own = spent - inner.pop()
                if inner:
                    inner[-1] += spent
                with self._lock:
                    self.seconds[span] += own
                    self.calls[span] += 1

        return measured

    def _inner(self) -> list[float]:
        """For each span open in this thread: the time spent in spans inside it."""
        if not hasattr(self._local, "inner"):
            self._local.inner = []
        return self._local.inner
