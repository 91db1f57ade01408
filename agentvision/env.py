"""Environments: what a model acts in, one message at a time.

`reset` shows the sample's first views and the question; each `step` takes one turn of the model and answers with the
next observation or a `StopReason`. `VisionEnv` is the one environment that tools need: it parses the turn, runs the
tool through its boundary and enters what it shows into the ledger of views. What the model does wrong is an outcome;
only an unreadable image (in `reset`) and misuse raise. Change behaviour by wrapping (`wrappers.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from agentvision.compute import VisionSpec
from agentvision.errors import PluginError
from agentvision.first_views import first_views
from agentvision.images import ImageStore
from agentvision.protocol import Protocol as TurnProtocol
from agentvision.tool import Tool, ToolContext, ToolResult, call_tool
from agentvision.types import (
    ImageHash,
    Message,
    Observation,
    ParsedTurn,
    Sample,
    StepResult,
    StopReason,
    ToolError,
    ToolRecord,
    Turn,
    View,
)
from agentvision.views import NewView


@runtime_checkable
class Environment(Protocol):
    """What an episode runs in. One environment serves one episode at a time."""

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        """Begin an episode. What it raises ends the episode: `ImageError` says that the sample's image is bad
        (`StopReason.BAD_IMAGE`), anything else that the environment failed (`StopReason.ENV_ERROR`)."""
        ...

    async def step(self, message: Message) -> StepResult:
        """Take the model's turn. Not called again once it has returned a `stop`."""
        ...

    async def close(self) -> None:
        """Free what the episode held; may be called at any time, and more than once."""
        ...


@dataclass(frozen=True, slots=True)
class FirstView:
    """How images are first shown: `scale` multiplies the sides at which they would be seen in full."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"FirstView.scale must be above 0 and at most 1, not {self.scale!r}")


class VisionEnv:
    """Questions about images, with tools that show more of them.

    At most `max_turns` turns; a tool call in the last one is not run. An episode about one image shows `max_images`
    views at most, the first one included; a question's further images add their first views to that. `on_malformed`
    says whether a turn that is not in the grammar is told to the model ("retry") or ends the episode ("stop"); one that
    holds an answer all the same ends it answered.
    Environments of a group share their `store`, and with it decoded images, rendered views, the opening of a sample (made
    once for those that announce the same tools) and what pure tools gave.
    """

    def __init__(
        self,
        *,
        tools: Sequence[Tool],
        vision: VisionSpec,
        store: ImageStore,
        protocol: TurnProtocol,
        first_view: FirstView = FirstView(),
        max_turns: int = 2,
        max_images: int = 2,
        on_malformed: Literal["retry", "stop"] = "retry",
    ) -> None:
        if max_turns < 1 or max_images < 1:
            raise ValueError(f"max_turns and max_images must be at least 1, not {max_turns!r} and {max_images!r}")
        self.tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        if len(self.tools) != len(tools):
            raise PluginError(f"two tools share a name: {[tool.name for tool in tools]!r}; rename one with prefixed()")
        self._vision, self._store, self._protocol = vision, store, protocol
        self._first_view, self._max_turns, self._max_images = first_view, max_turns, max_images
        self._on_malformed = on_malformed
        self._views: dict[int, View] = {}
        self._originals: tuple[ImageHash, ...] = ()
        self._seed = 0
        self._turns = 0
        self._over = True

    @property
    def views(self) -> tuple[View, ...]:
        """Every view of the episode so far."""
        return tuple(self._views.values())

    @property
    def originals(self) -> tuple[ImageHash, ...]:
        """The question's images, in their order."""
        return self._originals

    @property
    def full_tokens(self) -> int:
        """Visual tokens that the question's images cost at full resolution."""
        return sum(self._vision.tokens(self._store.size(key)) for key in self._originals)

    @property
    def schemas(self) -> tuple[dict[str, Any], ...]:
        """The tools' JSON schemas, as announced in the opening."""
        return tuple(tool.schema for tool in self.tools.values())

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        """Load the images, show their first views and the question. Raises `ImageError`."""
        self._over = True
        schemas = self.schemas

        async def make() -> _Opening:
            scale = self._first_view.scale
            new = (
                await first_views(sample, store=self._store, vision=self._vision, scale=scale) if sample.images else ()
            )
            self._originals = tuple(each.original for each in new)
            views = self._entered(new, source="first_view", start=1)
            messages = self._protocol.opening(sample, views, schemas)
            shown = Observation(messages, views, full_tokens=self.full_tokens)
            return _Opening(shown, self._originals, of=(sample, self._protocol))

        # A sample and a protocol go by their ids, which nothing else can have while they are held.
        told = json.dumps(schemas)
        same = "opening", type(self), id(sample), id(self._protocol), self._vision, self._first_view, told
        opening: _Opening = await self._store.once.get(same, make)
        self._originals = opening.originals
        self._views = {view.index: view for view in opening.shown.views}
        self._seed, self._turns, self._over = seed, 0, False
        return opening.shown

    async def step(self, message: Message) -> StepResult:
        """Read the turn; run its tool call, or end the episode. Raises `RuntimeError` when none is under way."""
        if self._over:
            raise RuntimeError("step() needs an episode under way: call reset() first")
        start = time.perf_counter()
        parsed = self._protocol.parse(message.text)
        self._turns += 1
        last = self._turns >= self._max_turns

        def over(stop: StopReason) -> StepResult:
            self._over = True
            turn = Turn(message.text, parsed, seconds=time.perf_counter() - start)
            return StepResult(turn, None, stop, parsed.answer)

        if parsed.answer is not None:
            return over(StopReason.ANSWERED)
        if parsed.problem is not None:
            if last or self._on_malformed == "stop":
                return over(StopReason.MALFORMED)
            turn = Turn(message.text, parsed, seconds=time.perf_counter() - start)
            return StepResult(turn, Observation((self._protocol.problem_message(parsed),)))
        if last:
            return over(StopReason.MAX_TURNS)
        record, views = await self._use_tool(parsed)
        turn = Turn(message.text, parsed, record, seconds=time.perf_counter() - start)
        return StepResult(turn, Observation((self._protocol.tool_message(record, views),), views))

    async def close(self) -> None:
        self._over = True

    async def _use_tool(self, parsed: ParsedTurn) -> tuple[ToolRecord, tuple[View, ...]]:
        if parsed.call is None:
            raise ValueError(f"the protocol read neither a call, an answer nor a problem: {parsed!r}")
        ctx = ToolContext(dict(self._views), self._store, self._vision, seed=self._seed + self._turns)
        outcome = await call_tool(self.tools, parsed.call, ctx)
        result = outcome.result or ToolResult()
        room = len(self._originals) + self._max_images - 1 - len(self._views)
        if len(result.images) > room:
            text = f"No more images can be shown: {max(room, 0)} left. Answer from what you have seen."
            return replace(outcome.record, text=text, error=ToolError.IMAGE_BUDGET), ()
        views = self._entered(result.images, source=parsed.call.name, start=len(self._views) + 1)
        self._views.update((view.index, view) for view in views)
        return replace(outcome.record, views=tuple(view.index for view in views)), views

    def _entered(self, shown: Sequence[NewView], *, source: str, start: int) -> tuple[View, ...]:
        """The ledger's entries of what was shown; indices count on from `start`."""
        return tuple(
            new.entered(index, source=source, store=self._store, vision=self._vision)
            for index, new in enumerate(shown, start=start)
        )


@dataclass(frozen=True, slots=True)
class _Opening:
    """What an episode of this sample begins with, the same for all in a store; `of` holds what it goes by."""

    shown: Observation
    originals: tuple[ImageHash, ...]
    of: tuple[object, ...]
