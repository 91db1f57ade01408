"""One vLLM server: turns over its token-in, token-out route, and the trainer's side over its development routes.

A turn goes out as the ledger's engine stream, with images by hash; an image's pixels travel with it until the server has
answered once, and again when it says that it has forgotten them. What comes back is held against the ledger: the prompt as
the server expanded it must be the trainer's stream, id by id. A pause ends the turns in flight at the server, which says what
it has of them; they wait here and go on from there, after a resume. (vLLM's own way to keep them does not survive that its
caches are reset: the images of a turn that was found in the prefix cache are gone, and with them the engine.) Calls may come
from any event loop. Closing the connection is how a turn is given up: the server then stops sampling it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentvision.chat.network import on_network
from agentvision.engine.part import Part, joined, part_of, version_number
from agentvision.engine.pictures import Pictures
from agentvision.engine.routes import GENERATE, PAUSE, RESUME, EndpointInfo, Routes
from agentvision.engine.types import Ask, EngineError, EngineLost, Sampled
from agentvision.engine.wire import Reply
from agentvision.tokens import token_count, trainer_ids
from agentvision.types import ImageHash, ImageSegment

if TYPE_CHECKING:
    from agentvision.tokens import Codec

_KNOWN_IMAGES = 1 << 16
_RESET_TRIES, _RESET_S = 20, 0.1
_LEAVING_S = 10.0
"""For pausing a server again whose weights were not proven."""
_PAUSED_S = 0.2
"""Between two questions whether another process's pause has ended."""


class Endpoint:
    """`timeout_s` bounds one turn, `control_timeout_s` each call of the trainer's side; an update of which nothing is heard for
    `quiet_s` is taken to be given up.

    `pictures` may be shared by the endpoints of a pool. `weights` is the version that the server holds: None before it was
    asked, and from the start of an update until the resume after it (the trainer resumes what it has proven), whatever the
    server says meanwhile. `brought` is the version that this process brought it last: another run's server may say the same
    number. `held`: the trainer has it paused; `paused`: it said so at the last check, whoever did it.
    """

    def __init__(
        self,
        url: str,
        *,
        codec: Codec,
        pictures: Pictures | None = None,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        control_timeout_s: float = 120.0,
        quiet_s: float = 30.0,
    ) -> None:
        self._routes = Routes(url, api_key=api_key)
        self.url = self._routes.url
        self._image_token_id = codec.image_token_id
        self._pictures = pictures or Pictures(codec.vision)
        self._timeout_s, self._control_timeout_s, self._quiet_s = timeout_s, control_timeout_s, quiet_s
        self._known: OrderedDict[ImageHash, None] = OrderedDict()
        self.info: EndpointInfo | None = None
        self.weights: str | None = None
        self.brought: str | None = None
        self.paused = False
        self._torn = False  # an update was begun, and no resume came after its end
        self._finished: str | None = None  # the version of an update that has ended, until the resume
        self._calls = 0  # of the trainer's side, under way
        self._heard = -math.inf  # when the last of them ended well, by `time.monotonic`
        self._going = asyncio.Event()  # cleared while the trainer has it paused
        self._going.set()
        self._pauses = 0
        self._ordering = asyncio.Lock()  # a pause is not overtaken by a resume that was sent before it
        self.on_resume: Callable[[str | None], None] = lambda version: None
        """Called when turns may go on, with the version of the weights that the server took before, if it took any."""

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    # --- what it is -------------------------------------------------------------------------------------------------

    async def probe(self, *, timeout_s: float = 10.0) -> EndpointInfo:
        """What the server offers, asked anew. Raises `EngineLost` when it does not answer, `EngineError` for a bad key."""
        return await on_network(self._probe(timeout_s))

    async def _probe(self, timeout_s: float) -> EndpointInfo:
        self.info, version = await self._routes.offered(timeout_s)
        self._weights_are(version)
        return self.info

    def _weights_are(self, version: str) -> None:
        self.weights = None if self._torn else version

    async def check(self, *, timeout_s: float) -> None:
        """Raise `EngineLost` unless the server is well: its front, and, where it can be asked, the engine behind it. Raises
        `EngineError` where another kind of server answers: no waiting mends it.

        Where it can be asked, `weights` and `paused` are what it says: one that was started again has its first weights. All
        of it together has `timeout_s`.
        """
        await on_network(self._check(timeout_s))

    async def _check(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        await self._routes.health(timeout_s)
        # vLLM's front says that it is well while its engine hangs. An engine that takes weights may be long about it.
        if self.info is not None and self.info.control and not self.updating:
            self._weights_are(await self._routes.weights(round(until - time.monotonic(), 2)))
            self.paused = await self._routes.is_paused(round(until - time.monotonic(), 2))

    # --- turns ------------------------------------------------------------------------------------------------------

    async def sample(self, ask: Ask) -> Sampled:
        """Sample one turn here. `EngineLost` means that it may be asked of another; see `Engine.sample`."""
        return await on_network(self._sample(ask))

    async def _sample(self, ask: Ask) -> Sampled:
        ask = self._fitted(ask)
        said: Sampled | None = None
        while True:
            await self._going.wait()
            pauses, weights = self._pauses, self.weights
            part = await self._sample_part(ask, () if said is None else said.ids)
            said = part.sampled if said is None else joined(said, part.sampled)
            if not part.aborted or len(said.ids) == ask.max_tokens or (said.ids and said.ids[-1] in ask.stop_ids):
                return said
            if pauses == self._pauses:
                await self._paused_by_another(part, weights)

    async def sample_alone(self, ask: Ask) -> Sampled:
        """The server itself is resumed for it, and paused again where it fails: other processes may ask a server that is not.

        What this process asks of it waits here until `resume`.
        """
        return await on_network(self._sample_alone(ask))

    async def _sample_alone(self, ask: Ask) -> Sampled:
        ask = self._fitted(ask)
        await self._control("POST", RESUME)
        try:
            with self._calling():
                # A call of the trainer's: whoever waits for the update waits no longer for it than for the others.
                part = await self._sample_part(ask, (), timeout_s=self._control_timeout_s)
            if part.aborted:
                raise EngineLost(f"{self.url} gave the turn up that was to show its weights")
        except (EngineError, ValueError, asyncio.CancelledError):
            with suppress(EngineError, TimeoutError):
                async with asyncio.timeout(_LEAVING_S):
                    await self._control("POST", PAUSE)
            raise
        return part.sampled

    def _fitted(self, ask: Ask) -> Ask:
        if self.info is None or self.info.max_model_len is None:
            return ask
        prompt = token_count(ask.segments)
        room = self.info.max_model_len - prompt
        if ask.max_tokens < 1 or room < 1:
            raise ValueError(
                f"turn {ask.turn} of {ask.session!r} has room for {min(room, ask.max_tokens)} tokens: the prompt takes "
                f"{prompt} of the engine's {self.info.max_model_len}"
            )
        return replace(ask, max_tokens=min(room, ask.max_tokens))

    async def _paused_by_another(self, part: Part, weights: str | None) -> None:
        """Wait out the pause of another process that ended this part of a turn. Raises `EngineLost` where there was none.

        `weights` were the server's when it was asked, for where the part does not say.
        """
        if self.info is not None and self.info.control:
            label = str(part.sampled.versions[-1].version) if part.sampled.versions else weights
            paused = False
            try:
                async with asyncio.timeout(self._timeout_s):
                    while await self._routes.is_paused(self._control_timeout_s):
                        paused = True
                        await asyncio.sleep(_PAUSED_S)
            except TimeoutError:
                raise EngineLost(
                    f"{self.url} was paused by another process and not resumed within {self._timeout_s:g} s"
                ) from None
            now = await self._routes.weights(self._control_timeout_s)
            self._weights_are(now)
            if paused or (label is not None and self._number(label) != self._number(now)):
                return
        raise EngineLost(f"{self.url} gave a turn up, and nobody paused it")

    def _number(self, label: str) -> int:
        return version_number(label, who=self.url)

    async def _sample_part(self, ask: Ask, said: tuple[int, ...], *, timeout_s: float | None = None) -> Part:
        timeout_s = timeout_s or self._timeout_s
        brought = self.brought
        images = [s.image for s in ask.segments if isinstance(s, ImageSegment)]
        known = {image for image in images if image in self._known}
        reply = await self._generate(ask, said, images, known, timeout_s)
        if reply.status == 400 and known:  # it may have forgotten one
            for image in known:
                self._known.pop(image, None)
            reply = await self._generate(ask, said, images, set(), timeout_s)
        if reply.status != 200:
            raise self._routes.refused_turn(reply, ask)
        for image in images:
            self._known[image] = None
            self._known.move_to_end(image)
        while len(self._known) > _KNOWN_IMAGES:
            self._known.popitem(last=False)
        try:
            prompt = [*trainer_ids(ask.segments, self._image_token_id), *said]
            return part_of(reply.body, prompt=prompt, brought=brought, url=self.url)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"{self.url}{GENERATE} answered in an unknown form ({type(error).__name__}: {error}); vLLM 0.32 is spoken here"
            ) from None

    async def _generate(
        self,
        ask: Ask,
        said: tuple[int, ...],
        images: Sequence[ImageHash],
        known: set[ImageHash],
        timeout_s: float,
    ) -> Reply:
        parts: list[dict[str, str]] = []
        for image in images:
            part = {"type": "image_url", "uuid": image}
            parts.append(part if image in known else {**part, "url": await self._pictures.url(ask.store, image)})
        return await self._routes.generate(ask, said, parts, image_token_id=self._image_token_id, timeout_s=timeout_s)

    # --- the trainer's side -----------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        return not self._going.is_set()

    @property
    def updating(self) -> bool:
        """An update is under way: its last call did not fail and is not long ago."""
        return self._torn and (self._calls > 0 or time.monotonic() - self._heard < self._quiet_s)

    async def pause(self) -> None:
        await on_network(self._pause())

    async def _pause(self) -> None:
        self.hold()
        async with self._ordering:
            await self._control("POST", PAUSE)

    def hold(self) -> None:
        """Ask no further turns until `release`: the process that brings weights is about to pause the server."""
        self._going.clear()
        self._pauses += 1

    def release(self) -> None:
        self._going.set()
        self.on_resume(None)

    async def resume(self) -> None:
        await on_network(self._resume())

    async def _resume(self) -> None:
        taken = None
        try:
            await self._control("POST", RESUME)
            if (taken := self._finished) is not None:
                self.weights, self.brought, self._torn, self._finished = taken, taken, False, None
        finally:
            self._going.set()  # where it could not be resumed, its turns give it up
            self.on_resume(taken)

    def distrust(self) -> None:
        """What it computes with is not known: it gets no turns before it has taken weights anew, and whole."""
        self._begin_update()
        self._heard = -math.inf

    async def start_weight_update(self) -> None:
        self._begin_update()
        await self._control("POST", "/start_weight_update")

    def _begin_update(self) -> None:
        self.weights, self.brought, self._torn, self._finished = None, None, True, None

    async def update_weights(self, info: Mapping[str, Any]) -> None:
        await self._control("POST", "/update_weights", {"update_info": dict(info)})

    async def finish_weight_update(self, version: int) -> None:
        await self._control("POST", "/finish_weight_update", {"weight_version": str(version)})
        self._finished = str(version)

    async def call_worker(self, method: str, **kwargs: str) -> Sequence[Any]:
        body = {"method": method, "kwargs": kwargs, "timeout": self._control_timeout_s}
        reply = await self._control("POST", "/collective_rpc", body)
        results = list((reply.body or {}).get("results") or [])
        if not results or None in results:
            raise EngineError(
                f"{self.url} gave no answer of its workers to {method!r} ({results!r}); start it with"
                " --worker-extension-cls agentvision.engine.worker.WeightReader"
            )
        return results

    async def trainer_host(self) -> str:
        return await self._routes.wire.local_host()

    async def reset_caches(self) -> None:
        for _ in range(_RESET_TRIES):
            if ((await self._control("POST", "/reset_prefix_cache")).body or {}).get("success"):
                break
            await asyncio.sleep(_RESET_S)  # a turn that a pause ended may not have let go yet
        else:
            raise EngineError(f"{self.url} keeps its prefix cache: turns are being sampled; pause it before the reset")
        await self._control("POST", "/reset_mm_cache")
        await self._control("POST", "/reset_encoder_cache")
        self._known.clear()

    async def version(self) -> str:
        reply = await self._control("GET", "/weight_info")
        return str(reply.body["weight_version"])

    async def resume_unless_held(self) -> None:
        """Undo a pause that nobody stands behind: a resume that was lost with a connection, or another trainer's."""
        await on_network(self._resume_unless_held())

    async def _resume_unless_held(self) -> None:
        async with self._ordering:
            # The trainer may pause it while this asks. What is sent then is the trainer's, and after what is sent here.
            if not self.held and (await self._control("GET", "/is_paused")).body["is_paused"] and not self.held:
                await self._control("POST", RESUME)

    async def _control(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        with self._calling():
            call = self._routes.control(method, path, body=body, timeout_s=self._control_timeout_s)
            return await on_network(call)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        self._calls += 1
        self._heard = -math.inf
        try:
            yield
            self._heard = time.monotonic()
        finally:
            self._calls -= 1

    async def close(self) -> None:
        await on_network(self._routes.wire.close())
