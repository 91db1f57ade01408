"""What several training processes do together about their engines: start them, and agree on what became of a sync."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from agentvision._workers import run_sync
from agentvision.engine.in_process import InProcessEngine
from agentvision.engine.launch import ServerPlan, Servers
from agentvision.engine.ranks import in_thread, raise_any, rank, ranks, told_by_all, told_by_first
from agentvision.engine.settings import EngineSettings
from agentvision.engine.types import EngineError
from agentvision.errors import AgentVisionError, ModelError
from agentvision.policies._vllm_settings import in_the_recipes_words
from agentvision.tokens import Codec

Agreement: TypeAlias = Callable[[EngineError | None], Awaitable[list[EngineError]]]
"""From what became of a try (None: it is proven) to the errors of all that try together."""


async def alone(error: EngineError | None) -> list[EngineError]:
    return [error] if error is not None else []


async def of_all(error: EngineError | None) -> list[EngineError]:
    """Of all ranks, each with its rank's number."""
    if ranks() == 1:
        return await alone(error)
    told = await in_thread(lambda: told_by_all(error))
    return [type(e)(f"rank {number}: {e}") for number, e in enumerate(told) if e is not None]


def own_engine(settings: EngineSettings, codec: Codec) -> InProcessEngine:
    """Every rank's own engine. Raises on all what any raises, and then none is left."""
    engine: InProcessEngine | None = None
    error: AgentVisionError | None = None
    try:
        engine = InProcessEngine(settings, codec)
    except ModelError as raised:
        error = ModelError(in_the_recipes_words(str(raised)))
        error.__cause__ = raised
    except AgentVisionError as raised:
        error = raised
    try:
        raise_any(error)
    except AgentVisionError:
        if engine is not None:
            run_sync(engine.close)
        raise
    assert engine is not None
    return engine


def started_servers(
    settings: EngineSettings, count: int, devices: Sequence[str], logs: Path | None
) -> tuple[Servers | None, Sequence[str]]:
    """Start servers, on the first rank; their addresses, on all. Raises `EngineError` on all."""
    servers: Servers | None = None
    urls: Sequence[str] = ()
    error: EngineError | None = None
    if rank() == 0:
        plan = ServerPlan(
            settings.path,
            count=count,
            devices=tuple(devices),
            flags=settings.flags(),
            env=settings.environment(),
            logs=logs,
        )
        servers = Servers(plan)
        try:
            urls = run_sync(servers.start)
        except EngineError as raised:
            error = raised
    raise_any(error)
    return servers, told_by_first(urls)
