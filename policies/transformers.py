"""A policy that runs a Qwen-VL model of transformers in this process: exact ids and log-probs, so it can be trained.

`complete` puts a turn into a queue; one worker thread owns the engine (`_engine.py`) and batches whatever waits, so
tools, deadlines and other coroutines go on meanwhile. There is no barrier between turns: a row leaves the batch when
its turn ends and joins again when its tool has answered. The trainer shares the module and calls `weights_changed`
after each update. It must not change weights while turns are being sampled, unless the policy samples from a copy.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from agentvision.errors import ModelError
from agentvision.policies._engine import Engine
from agentvision.policies._jobs import Job, Outcome, PolicyStats
from agentvision.policies._model import Attention, dtype_of, load_model
from agentvision.policies._network import Network
from agentvision.policy import Completion, Request
from agentvision.recipe.lora import Lora
from agentvision.tokens import Codec

MAX_ROWS, PREFILL_TOKENS, IMAGE_TOKENS = 256, 8192, 1 << 16
"""Defaults of the constructor and of `from_pretrained`, which see."""

_QUIET_S = 0.002
"""An idle engine starts when no request has come for so long …"""
_GATHER_S = 0.05
"""… or when the first has waited for so long: requests that are sent together should share a batch."""
_PATIENCE_STEPS = 8
"""A request waits at most so many decode steps for others to join with."""
_IDLE_S = 5.0
"""The worker thread ends when it has had nothing to do for so long; the next request starts another."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """A job and who waits for it."""

    job: Job
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Outcome]


class TransformersPolicy:
    """Batched sampling with keys and values that live across turns and are shared by a group's rollouts.

    `max_rows` bounds the sessions that hold keys and values at a time (others wait); `prefill_tokens` the tokens of one
    prefill pass; `image_tokens` the cache of image embeddings. `vision_frozen` says that training leaves the vision
    tower alone, so embeddings outlive a change of weights. `compute_dtype` ("bfloat16") samples with a copy of the
    weights in that type, made anew after each update: for training whose master weights are float32. Setting
    `samples_from_copy` makes one in the same type, while no turn is being sampled.
    """

    trainable = True

    def __init__(
        self,
        model: nn.Module,
        codec: Codec,
        *,
        max_rows: int = MAX_ROWS,
        prefill_tokens: int = PREFILL_TOKENS,
        image_tokens: int = IMAGE_TOKENS,
        vision_frozen: bool = False,
        compute_dtype: torch.dtype | str | None = None,
    ) -> None:
        for name, value in {"max_rows": max_rows, "prefill_tokens": prefill_tokens}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        self.model = model
        self.codec: Codec | None = codec
        self.stats = PolicyStats()
        self.vision_frozen = vision_frozen
        self._codec = codec
        self._network = Network(model, compute_dtype=dtype_of(compute_dtype))
        if codec.vocab_size > self._network.vocab_size:
            raise ModelError(
                f"the codec has {codec.vocab_size} ids and the model only {self._network.vocab_size}:"
                " they do not belong together"
            )
        self._engine = Engine(
            self._network,
            codec,
            self.stats,
            max_rows=max_rows,
            prefill_tokens=prefill_tokens,
            image_tokens=image_tokens,
        )
        self._version = 0
        self._changed = threading.Condition()
        # All that follows is shared with the worker and guarded by the condition's lock.
        self._arrived: list[_Ticket] = []
        self._last_arrival = 0.0
        self._ended_sessions: deque[str] = deque()
        self._stale = False
        self._followers: list[Future[None]] = []
        """Who waits until the copy has the new weights."""
        self._closed = False
        self._worker: threading.Thread | None = None
        # And these are the worker's own.
        self._tickets: dict[Job, _Ticket] = {}
        self._queue: list[Job] = []
        self._steps_waited = 0

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "auto",
        attn: Attention = "auto",
        revision: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
        codec: Codec | None = None,
        max_rows: Annotated[int, Field(ge=1)] = MAX_ROWS,
        prefill_tokens: Annotated[int, Field(ge=1)] = PREFILL_TOKENS,
        image_tokens: Annotated[int, Field(ge=0)] = IMAGE_TOKENS,
        vision_frozen: bool = False,
        compute_dtype: Literal["bfloat16", "float16", "float32"] | None = None,
        adapter: Lora | None = None,
    ) -> TransformersPolicy:
        """Load a local folder or a hub id (safetensors only); what a recipe may set, the constructor's arguments included.

        `min_pixels` and `max_pixels` replace the image processor's own. `attn` is the implementation of the vision
        tower and of the trainer's forward pass; sampling always uses torch's scaled-dot-product attention, which picks
        its own kernels. `adapter` is put into the model, to be trained.

        Raises `ModelError` when the model is missing, broken or of another family.
        """
        model = load_model(
            path,
            dtype=dtype,
            device=device,
            attn=attn,
            revision=revision,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
        )
        codec = codec or Codec.from_pretrained(
            path,
            revision=revision,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            trust_remote_code=trust_remote_code,
        )
        return cls(
            model,
            codec,
            max_rows=max_rows,
            prefill_tokens=prefill_tokens,
            image_tokens=image_tokens,
            vision_frozen=vision_frozen,
            compute_dtype=compute_dtype,
        )

    @property
    def version(self) -> int:
        """Of the weights: what the last `weights_changed` said, 0 before."""
        return self._version

    @property
    def samples_from_copy(self) -> bool:
        return self._network.is_copy

    @samples_from_copy.setter
    def samples_from_copy(self, wanted: bool) -> None:
        if wanted:
            self._network.copy_weights()
        elif self._network.is_copy:
            raise ModelError("the policy has a copy of the weights already, and cannot go back to the trainer's own")

    # --- the policy's protocol --------------------------------------------------------------------------------------

    async def complete(self, request: Request) -> Completion:
        """Sample one turn. Raises `ValueError` for an impossible request, and what the engine raised if it failed."""
        return await self.submit([request])[0]

    def submit(self, requests: Sequence[Request]) -> list[Awaitable[Completion]]:
        """`complete` for several turns that join the batch together, in this order; each is awaited by itself."""
        loop = asyncio.get_running_loop()
        tickets: list[_Ticket | ValueError] = []
        for request in requests:
            try:
                tickets.append(
                    _Ticket(Job.of(request, vocab_size=self._network.vocab_size), loop, loop.create_future())
                )
            except ValueError as error:
                tickets.append(error)
        with self._changed:
            if self._closed:
                raise RuntimeError("the policy is closed")
            self._arrived += [ticket for ticket in tickets if isinstance(ticket, _Ticket)]
            self._last_arrival = time.monotonic()
            self._wake()
        return [self._completion(ticket) for ticket in tickets]

    async def _completion(self, ticket: _Ticket | ValueError) -> Completion:
        if isinstance(ticket, ValueError):
            raise ticket
        job = ticket.job
        try:
            outcome = await ticket.future
        except asyncio.CancelledError:
            job.cancelled = True
            raise
        if outcome.error is not None:
            raise outcome.error
        return Completion(
            text=self._codec.decode(outcome.ids),
            ids=outcome.ids,
            logprobs=outcome.logprobs,
            ended=outcome.ids[-1] in self._codec.stop_ids,
            versions=outcome.versions,
            usage={"prompt_tokens": len(job.codes), "prefilled_tokens": job.prefilled, "reused_tokens": job.reused},
        )

    async def release(self, session: str) -> None:
        """Forget what was kept for this session."""
        with self._changed:
            self._ended_sessions.append(session)
            if self._engine.is_large:
                self._wake()

    async def close(self) -> None:
        """Fail what still waits, end the worker and free the caches. The policy cannot be used again."""
        with self._changed:
            self._closed = True
            worker = self._worker
            self._changed.notify_all()
        if worker is not None:
            await asyncio.to_thread(worker.join)
        self._engine.reset()

    async def ready(self) -> None:
        """It always is."""

    async def rest(self) -> None:
        """Nothing to give up: the weights are the trainer's, and keys and values are freed as their episodes end."""

    async def weights_changed(self, version: int) -> None:
        """Say that the module's weights are new, and which version they are: nothing computed before is used again.

        Turns being sampled go on under the new weights, from what they have said so far. A copy has the new weights when
        this returns: the module's may change again.
        """
        taken: Future[None] | None = None
        with self._changed:
            self._version = version
            self._stale = True
            if self.samples_from_copy:
                taken = Future()
                taken.set_running_or_notify_cancel()  # who stops waiting does not undo it
                self._followers.append(taken)
                self._wake()
        if taken is not None:
            await asyncio.wrap_future(taken)

    # --- the worker -------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have the worker look at the queue. Called with the lock held."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="agentvision-policy", daemon=True)
            self._worker.start()
        self._changed.notify_all()

    def _work(self) -> None:
        with torch.inference_mode():
            try:
                self._serve()
                reason = RuntimeError("the policy is closed")
            except Exception as error:  # not even starting over works: the device is gone
                reason = error
        with self._changed:
            if self._worker is threading.current_thread():
                self._worker = None
                self._deliver([Outcome(t.job, error=reason) for t in self._leftovers()])
                _fail_all(self._followers, reason)
                self._followers = []

    def _serve(self) -> None:
        while self._take():
            try:
                outcomes = self._turn_over()
            except Exception as error:
                outcomes = self._fail(error)
            self._deliver(outcomes)

    def _take(self) -> bool:
        """Wait until there is something to do and collect it; False when the thread should end."""
        with self._changed:
            if not self._queue and not self._engine.active:
                if not self._changed.wait_for(self._has_work, timeout=_IDLE_S):
                    self._worker = None
                    return False
                deadline = time.monotonic() + _GATHER_S
                while not self._closed and (now := time.monotonic()) < min(self._last_arrival + _QUIET_S, deadline):
                    self._changed.wait(min(self._last_arrival + _QUIET_S, deadline) - now)
            if self._closed:
                return False
            for ticket in self._arrived:
                self._tickets[ticket.job] = ticket
                self._queue.append(ticket.job)
            self._arrived.clear()
            return True

    def _has_work(self) -> bool:
        ended = self._ended_sessions and self._engine.is_large
        return bool(self._arrived or self._closed or self._followers or ended)

    def _heed(self) -> list[Outcome]:
        """Do what callers asked for since the last step: released sessions, new weights, cancelled turns."""
        with self._changed:
            ended = list(self._ended_sessions)
            self._ended_sessions.clear()
        stopped = [job for session in ended if (job := self._engine.release(session)) is not None]
        outcomes = [Outcome(j, error=RuntimeError(f"session {j.session!r} was released")) for j in stopped]
        self._take_over()
        for job in [j for j in self._tickets if j.cancelled and j not in stopped]:
            self._engine.cancel(job)
            del self._tickets[job]
        self._queue = [j for j in self._queue if not j.cancelled]
        return outcomes

    def _take_over(self) -> None:
        """Bring in new weights, if there are any: the turns at work are to go on under them."""
        with self._changed:
            if not self._stale:
                return
            version, followers = self._version, self._followers
            self._stale, self._followers = False, []
        try:
            self._network.refresh()
        except Exception as error:
            _fail_all(followers, error)
            raise
        for follower in followers:
            follower.set_result(None)
        self._queue = self._engine.weights_changed(version=version, keep_images=self.vision_frozen) + self._queue

    def _turn_over(self) -> list[Outcome]:
        """Let waiting jobs join when that is worth a prefill, then sample one token everywhere."""
        outcomes = self._heed()
        working = len(self._engine.active)
        if self._queue and (4 * len(self._queue) >= working or self._steps_waited >= _PATIENCE_STEPS):
            chosen, self._queue = self._engine.select(self._queue)
            self._steps_waited = 0
            outcomes += self._engine.admit(chosen)
        if self._engine.active:
            self._steps_waited += bool(self._queue)
            outcomes += self._engine.step()
        return outcomes

    def _fail(self, error: Exception) -> list[Outcome]:
        """Fail every job in the engine, and start over with an empty one; jobs that still wait are not lost."""
        waiting = set(self._queue)
        failed = [job for job in self._tickets if job not in waiting]
        self._engine.reset()
        return [Outcome(job, error=error) for job in failed]

    def _leftovers(self) -> Iterable[_Ticket]:
        """Everyone who still waits when the worker ends."""
        for ticket in self._arrived:
            self._tickets[ticket.job] = ticket
        self._arrived.clear()
        self._queue.clear()
        return list(self._tickets.values())

    def _deliver(self, outcomes: Iterable[Outcome]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Ticket, Outcome]]] = {}
        for outcome in outcomes:
            ticket = self._tickets.pop(outcome.job)
            by_loop.setdefault(ticket.loop, []).append((ticket, outcome))
        for loop, results in by_loop.items():
            with suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, results)


def _fail_all(followers: Iterable[Future[None]], error: Exception) -> None:
    for follower in followers:
        follower.set_exception(error)


def _resolve(results: list[tuple[_Ticket, Outcome]]) -> None:
    for ticket, outcome in results:
        if not ticket.future.done():
            ticket.future.set_result(outcome)
