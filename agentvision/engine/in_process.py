"""vLLM's engine in this process: one thread owns it, adds turns as they come and steps it while there are any.

An episode's turn joins the running batch at the next step and leaves it when it ends; nobody waits for anybody. What the
engine gets is the trainer's own: expanded ids of the ledger and the codec's preprocessed pixels, by reference and named by
the image's hash, so that nothing is decoded, encoded, copied or preprocessed a second time, prefixes of a group and of
earlier turns are found in its cache, and an image's features are computed once. Weights are handed over by reference too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from agentvision.engine import adapter
from agentvision.engine.part import joined, refuse_broken, spans_of
from agentvision.engine.prompt import params_of, prompt_of
from agentvision.engine.ranks import in_thread
from agentvision.engine.settings import EngineSettings
from agentvision.engine.start import ended, started
from agentvision.engine.types import Ask, Control, EngineError, EngineLost, Sampled
from agentvision.engine.waiting import Errand, Ticket, Told, as_told, engine_error, tell
from agentvision.errors import ModelError, first_line
from agentvision.images import ImageStore
from agentvision.tokens import Codec, engine_ids, token_count
from agentvision.types import ImageSegment, Segment

_T = TypeVar("_T")

_CONTROL_S, _CLOSE_S = 600.0, 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A prompt with every token of its images, and their grids (t, h, w) in patches."""

    ids: tuple[int, ...]
    grids: tuple[tuple[int, ...], ...]


class InProcessEngine(Control):
    """Both sides of one engine: `sample` for rollouts, the rest for the trainer."""

    _alive = False
    """vLLM's state is the process's: a second engine would break the first when it is closed."""

    def __init__(self, settings: EngineSettings, codec: Codec) -> None:
        if InProcessEngine._alive:
            raise ModelError(
                "this process has a colocated vLLM engine already, and vLLM can have only one: close that policy first, or "
                "take policy.placement 'separate'"
            )
        self.settings = settings
        self._codec = codec
        self._makes_world = not distributed.is_initialized()
        self._gpu = settings.gpu
        self._threads = torch.get_num_threads()
        self._engine = started(settings)
        InProcessEngine._alive = True
        self._changed = threading.Condition()
        # Guarded by the condition's lock.
        self._arrived: deque[Ticket] = deque()
        self._errands: deque[Errand] = deque()
        self._left: deque[Ticket] = deque()
        self._paused = False
        self._asleep = False
        self._closed = False
        self._failure: Exception | None = None
        self._worker: threading.Thread | None = None
        # The thread's own.
        self._running: dict[str, Ticket] = {}
        self._numbers = itertools.count(1)

    # --- sampling -----------------------------------------------------------------------------------------------------

    async def sample(self, ask: Ask) -> Sampled:
        """One turn. Raises `ValueError` when there is no room for it, `EngineLost` when the engine has failed."""
        ticket = await self._ticket(ask)
        with self._changed:
            self._refuse_if_gone()
            self._arrived.append(ticket)
            self._wake()
        try:
            return await ticket.future
        except asyncio.CancelledError:
            with self._changed:
                self._left.append(ticket)
                self._changed.notify_all()
            raise

    async def _ticket(self, ask: Ask) -> Ticket:
        """All that can be made of a turn before it comes to the engine's thread."""
        room = self.settings.context_tokens - token_count(ask.segments)
        if ask.max_tokens < 1 or room < 1:
            raise ValueError(
                f"turn {ask.turn} of {ask.session!r} has room for {min(room, ask.max_tokens)} tokens: the prompt takes "
                f"{token_count(ask.segments)} of the engine's {self.settings.context_tokens}"
            )
        images = sum(isinstance(segment, ImageSegment) for segment in ask.segments)
        if images > self.settings.max_images:
            raise EngineError(
                f"turn {ask.turn} of {ask.session!r} shows {images} images, and the engine takes {self.settings.max_images}: "
                "raise policy.options.max_images"
            )
        for segment in ask.segments:
            if isinstance(segment, ImageSegment) and not self._codec.has_pixels(segment.image):
                await asyncio.to_thread(self._codec.pixels, ask.store, segment.image)  # not on the engine's thread
        prompt, params = self._prepared(ask)
        loop = asyncio.get_running_loop()
        key = f"{ask.session}/{ask.turn}#{next(self._numbers)}"
        return Ticket(key, ask, prompt, params, loop, loop.create_future())

    async def release(self, session: str) -> None:
        """Nothing is kept by session: prefixes age out of the cache by themselves."""

    def controls(self) -> Sequence[Control]:
        return [self]

    async def expand(self, segments: Sequence[Segment], store: ImageStore) -> Expanded:
        """What vLLM itself makes of the engine's stream and the pictures, by its own processor: for checks."""
        from vllm.inputs import TokensPrompt

        images = [store.get(s.image) for s in segments if isinstance(s, ImageSegment)]
        prompt = TokensPrompt(prompt_token_ids=engine_ids(segments, self._codec.image_token_id))
        if images:
            prompt["multi_modal_data"] = {"image": images}

        def render() -> Expanded:
            (made,) = self._engine.renderer.render_cmpl([prompt])
            items = made["mm_kwargs"]["image"] if images else ()
            return Expanded(
                tuple(made["prompt_token_ids"]), tuple(tuple(item["image_grid_thw"].data.tolist()) for item in items)
            )

        return await self._do(render)

    # --- control ------------------------------------------------------------------------------------------------------

    async def sample_alone(self, ask: Ask) -> Sampled:
        ticket = await self._ticket(ask)

        def sample() -> None:
            if self._running:
                raise EngineError(
                    "turns are in the engine: a turn is sampled alone after a pause and a reset of the caches"
                )
            self._add(ticket)
            try:
                while ticket.key in self._running:
                    self._deliver(self._engine.step())
            finally:
                if self._running.pop(ticket.key, None) is not None:  # a step failed
                    self._engine.abort_request([ticket.engine_id], internal=True)

        await self._do(sample)
        return await ticket.future

    async def pause(self) -> None:
        with self._changed:
            self._paused = True

    async def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    async def start_weight_update(self) -> None:
        if self._asleep:
            await self._do(self._engine.wake_up)
            self._asleep = False
        await self._rpc("start_weight_update")

    async def update_weights(self, info: Mapping[str, Any]) -> None:
        await self._rpc("update_weights", update_info=dict(info))

    async def finish_weight_update(self, version: int) -> None:
        await self._rpc("finish_weight_update")
        await self._do(lambda: self._engine.set_weight_version(str(version)))

    async def call_worker(self, method: str, **kwargs: str) -> Sequence[Any]:
        return await self._rpc(method, **kwargs)

    async def trainer_host(self) -> str:
        return "127.0.0.1"

    async def reset_caches(self) -> None:
        def reset() -> None:
            self._put_back()
            if not self._engine.reset_prefix_cache():
                raise EngineError("the engine's prefix cache cannot be reset: blocks are still held")
            self._engine.reset_mm_cache()
            self._engine.reset_encoder_cache()

        await self._do(reset)

    async def version(self) -> str:
        return await self._do(self._engine.get_weight_version)

    async def sleep(self) -> None:
        """Give the device's memory up, weights and caches, until the next sync. On a CPU there is none, and it only stops."""
        if self.settings.sleeps and not self._asleep:
            await self.pause()
            await self._do(lambda: self._engine.sleep(level=self.settings.sleep_level, mode="keep"))
            self._asleep = True

    async def close(self) -> None:
        """Fail what still waits, end the thread and free the engine."""
        with self._changed:
            self._closed = True
            worker = self._worker
            self._changed.notify_all()
        if worker is not None:
            await asyncio.to_thread(worker.join, _CLOSE_S)
            if worker.is_alive():
                _log.error("vLLM's engine hangs in a step and is left behind.")
                return
        await in_thread(lambda: ended(self._engine, world=self._makes_world))
        InProcessEngine._alive = False

    async def _rpc(self, method: str, **kwargs: Any) -> Sequence[Any]:
        return await self._do(lambda: self._engine.collective_rpc(method, kwargs=kwargs))

    async def _do(self, do: Callable[[], _T]) -> _T:
        """Run on the engine's thread, between two steps. Failures come back as `EngineError`."""
        loop = asyncio.get_running_loop()
        errand = Errand(do, loop, loop.create_future())
        with self._changed:
            self._refuse_if_gone()
            self._errands.append(errand)
            self._wake()
        try:
            async with asyncio.timeout(_CONTROL_S):
                return await errand.future
        except TimeoutError as error:
            raise EngineLost(f"the engine has not answered for {_CONTROL_S:g} s: its thread hangs in a step") from error

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _refuse_if_gone(self) -> None:
        if self._closed:
            raise EngineLost("the engine is closed")
        if self._failure is not None:
            raise EngineLost(f"the engine has failed: {first_line(self._failure)}") from self._failure

    def _wake(self) -> None:
        """Called with the lock held."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._serve, name="agentvision-vllm", daemon=True)
            self._worker.start()
        self._changed.notify_all()

    def _serve(self) -> None:
        failure: Exception = EngineLost("the engine is closed")
        try:
            torch.set_num_threads(self._threads)  # each thread learns of it at its first sum, and vLLM asks before that
            if self._gpu is not None:  # each thread has a current device of its own
                torch.cuda.set_device(self._gpu)
            while self._take():
                self._deliver(self._engine.step())
        except BaseException as error:
            failure = EngineLost(f"the engine has failed: {first_line(error)}")
            failure.__cause__ = error
        with self._changed:
            self._failure = failure
            waiting = [*self._running.values(), *self._arrived, *self._errands]
            self._arrived.clear()
            self._errands.clear()
        tell([Told(one, error=failure) for one in waiting])

    def _take(self) -> bool:
        """Wait until there is a step to make, doing errands meanwhile; False when the engine is to end."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closed:
                    return False
                errands, left = list(self._errands), list(self._left)
                arrived = [] if self._paused else list(self._arrived)
                self._errands.clear()
                self._left.clear()
                if arrived:
                    self._arrived.clear()
            for errand in errands:
                try:
                    told = Told(errand, result=errand.do())
                except BaseException as error:  # vLLM ends with SystemExit as well
                    tell([Told(errand, error=engine_error(error))])
                    if not isinstance(error, Exception):
                        raise
                else:
                    tell([told])
            for ticket in arrived:
                if not ticket.future.done():  # its caller may have left while it waited
                    self._add(ticket)
            if keys := [t.engine_id for t in left if self._running.pop(t.key, None) is not None]:
                self._engine.abort_request(keys, internal=True)
            with self._changed:
                if self._running and not self._paused:
                    return True

    def _has_work(self) -> bool:
        moving = not self._paused and (self._arrived or self._running)
        return bool(moving or self._closed or self._errands or self._left)

    def _add(self, ticket: Ticket) -> None:
        try:
            lora = adapter.request() if ticket.ask.adapter else None
            ticket.engine_id = self._engine.add_request(ticket.key, ticket.prompt, ticket.params, lora_request=lora)
        except Exception as error:  # this turn's alone: the engine has not taken it
            tell([Told(ticket, error=as_told(error))])
            return
        self._running[ticket.key] = ticket

    def _prepared(self, ask: Ask, said: Sequence[int] = ()) -> tuple[Any, Any]:
        return prompt_of(ask, self._codec, said), params_of(ask, self.settings.context_tokens, said)

    def _put_back(self) -> None:
        """Take the turns in flight out of the engine, with what they have said; they go on from there when it does.

        vLLM can keep them itself, but not over a reset of its caches: of an image that it found in a prefix its worker has
        no pixels, and none to compute it anew.
        """
        from vllm.v1.engine import FinishReason

        states = self._engine.output_processor.request_states
        go_on: list[Ticket] = []
        for ticket in self._running.values():
            output = states[ticket.engine_id].make_request_output([], None, FinishReason.ABORT, None)
            try:
                if output is not None and output.outputs[0].token_ids:
                    ticket.said = self._sampled(ticket, output)
                said = ticket.said.ids if ticket.said is not None else ()
                ticket.prompt, ticket.params = self._prepared(ticket.ask, said)  # what vLLM was given is its own
            except Exception as error:  # this turn's alone
                tell([Told(ticket, error=as_told(error))])
            else:
                go_on.append(ticket)
        self._engine.abort_request([ticket.engine_id for ticket in self._running.values()], internal=True)
        self._running.clear()
        with self._changed:
            self._arrived.extendleft(reversed(go_on))

    def _deliver(self, outputs: Sequence[Any]) -> None:
        tell(
            [
                self._outcome(ticket, output)
                for output in outputs
                if output.finished and (ticket := self._running.pop(output.request_id, None)) is not None
            ]
        )

    def _outcome(self, ticket: Ticket, output: Any) -> Told:
        if (reason := output.outputs[0].finish_reason) not in ("stop", "length"):
            return Told(ticket, error=EngineError(f"the engine ended {ticket.key!r} with {reason!r}"))
        try:
            return Told(ticket, result=self._sampled(ticket, output))
        except Exception as error:
            return Told(ticket, error=as_told(error))

    def _sampled(self, ticket: Ticket, output: Any) -> Sampled:
        """What the turn has said, before it was put back and since."""
        said = output.outputs[0]
        ids, logprobs = tuple(said.token_ids), tuple(said.logprobs.logprobs)
        refuse_broken(logprobs, who="vLLM")
        now = Sampled(
            ids=ids,
            logprobs=logprobs,
            versions=spans_of([(s.version, s.start, s.end) for s in said.weight_versions or ()], len(ids), who="vLLM"),
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )
        return now if ticket.said is None else joined(ticket.said, now)
