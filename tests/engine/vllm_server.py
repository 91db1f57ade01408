"""A server on loopback that speaks vLLM's token-in, token-out protocol, and dies, hangs and errs as it is told to.

It runs on its own event loop in a thread: `with VllmServer() as server:` and `server.url`. What it samples is a function of
the prompt and the seed, so that any two servers say the same of the same turn, as two engines with equal weights do; the
log-probs name the answer (`server.answers`), so that a test can tell which one reached it. Sockets are its own, since a
dying server is none that a web framework can play. `die` and `start` again: the same port, and nothing remembered.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import itertools
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from agentvision.engine.carry import sees, taken
from agentvision.engine.digest import rows_digest, tensor_digest
from agentvision.engine.lend import fetched
from agentvision.engine.types import EngineError

GENERATE = "/inference/v1/generate"
_serial = itertools.count(1)


@dataclass(eq=False)
class Turn:
    """One request for a turn. `answer`: the serial number of what was said, None while nothing was."""

    session: str
    prompt: tuple[int, ...]  # as it came, images unexpanded
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    began: float = field(default_factory=time.monotonic)
    answer: int | None = None
    left: bool = False
    """The client closed the connection before the answer."""


Fault = Callable[[Turn], "str | None"]


@dataclass(eq=False)
class VllmServer:
    """`fault` names what is wrong with one turn: "wrong-ids", "abort", "nan", "garbage", "reset", "hang", or a status."""

    image_token_id: int
    stop_id: int
    fault: Fault = lambda turn: None
    latency_s: Callable[[Turn], float] = lambda turn: 0.0
    api_key: str | None = None
    exact: bool = True
    control: bool = True
    max_model_len: int = 4096
    source: str = "policy"
    spoil: Callable[[str, Any], Any] = lambda name, tensor: tensor
    """What becomes of a tensor on its way."""
    workers: bool = True
    """Its workers can be asked about their weights."""
    adapters: str = ""
    """Why it takes no adapters; nothing: it does."""
    seeing: bool = True
    """It sees the trainer's shared memory: it is on the same machine."""
    fetched: Callable[[Mapping[str, Any]], Any] = fetched
    prefix_busy: bool = False
    """Its prefix cache cannot be forgotten."""
    factor: int = 16
    port: int = 0
    turns: list[Turn] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """Of the trainer's side: route and body."""
    version: str = "default"
    tensors: dict[str, Any] = field(default_factory=dict)
    """Of the last update, by name."""
    problem: str = ""
    """Why they did not come whole."""
    paused: bool = False
    _pauses: int = 0
    _pausing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the next pause."""
    _images: dict[str, int] = field(default_factory=dict)
    _connections: set[asyncio.StreamWriter] = field(default_factory=set)
    _going: asyncio.Event = field(init=False)
    _engine_going: asyncio.Event = field(init=False)
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # --- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> VllmServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-server", daemon=True)
        self._thread.start()
        self._do(self._begin())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def die(self) -> None:
        """The listening socket and every connection, at once."""
        self._do(self._end())

    def start(self) -> None:
        """Again, at the same port, with its first weights and nothing in its caches."""
        self.version, self.paused = "default", False
        self._images.clear()
        self.tensors.clear()
        self._do(self._begin())

    def hang(self) -> None:
        """Connections are accepted and nothing is answered, as by a process that was stopped."""
        self._loop.call_soon_threadsafe(self._going.clear)

    def hang_engine(self) -> None:
        """The front answers, the engine behind it does not."""
        self._loop.call_soon_threadsafe(self._engine_going.clear)

    def go_on(self) -> None:
        """Answer all that waits, whether or not anyone still wants it."""
        self._loop.call_soon_threadsafe(self._going.set)
        self._loop.call_soon_threadsafe(self._engine_going.set)

    def forget_images(self) -> None:
        self._images.clear()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _begin(self) -> None:
        self._going, self._engine_going = asyncio.Event(), asyncio.Event()
        self._going.set()
        self._engine_going.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._connections):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    # --- HTTP -------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve_one(reader, writer):
                    pass
        finally:
            self._connections.discard(writer)
            with suppress(Exception):
                writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(raw) if raw else {}
        await self._going.wait()
        path = target.partition("?")[0]
        guarded = path.startswith(("/v1", "/inference"))
        if guarded and self.api_key and headers.get("authorization") != f"Bearer {self.api_key}":
            status, answer = 401, {"error": "Unauthorized"}
        elif path == GENERATE and self.exact:
            # A client that leaves is noticed while its turn is sampled, as vLLM does.
            turn = Turn(headers.get("x-session-id", ""), tuple(body.get("token_ids", ())), body, headers)
            work = asyncio.ensure_future(self._generate(turn, headers))
            gone = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                turn.left = True
                work.cancel()
                return False
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
            status, answer = work.result()
            if answer == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return False
        else:
            status, answer = await self._route(method, path, target, body)
        data = b"" if answer is None else json.dumps(answer).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return True

    async def _route(self, method: str, path: str, target: str, body: Any) -> tuple[int, Any]:
        match method, path:
            case "GET", "/health":
                return 200, None
            case "GET", "/v1/models":
                return 200, {"data": [{"id": "policy", "root": self.source, "max_model_len": self.max_model_len}]}
        if not self.control:
            return 404, {"detail": "Not Found"}
        await self._engine_going.wait()
        if method == "POST":
            self.calls.append((target, body))
        match method, path:
            case "GET", "/weight_info":
                return 200, {"weight_version": self.version}
            case "GET", "/is_paused":
                return 200, {"is_paused": self.paused}
            case "POST", "/pause":
                self.paused, self._pauses = True, self._pauses + 1
                self._pausing.set()
                self._pausing = asyncio.Event()
            case "POST", "/resume":
                self.paused = False
            case "POST", "/start_weight_update" | "/update_weights":
                info = body.get("update_info", {})
                if path == "/start_weight_update":
                    self.tensors.clear()
                    self.problem = ""
                elif info.get("fail"):
                    return 500, {"error": {"message": "the tensor does not fit"}}
                elif "places" in info:
                    try:
                        bucket = await asyncio.to_thread(taken, info, self.fetched)
                        self.tensors.update((name, self.spoil(name, tensor)) for name, tensor in bucket)
                    except EngineError as error:
                        self.problem = str(error)
            case "POST", "/finish_weight_update":
                self.version = body["weight_version"]
            case "POST", "/collective_rpc":
                return 200, {"results": [self._worker(body["method"], **body["kwargs"])] if self.workers else []}
            case "POST", "/reset_prefix_cache":
                return 200, {"success": not self.prefix_busy}
            case "POST", "/reset_mm_cache":
                self._images.clear()
                return 200, None
            case "POST", "/reset_encoder_cache":
                return 200, None
            case _:
                return 404, {"detail": "Not Found"}
        return 200, {"status": "ok"}

    def _worker(self, method: str, **kwargs: str) -> str:
        match method:
            case "agentvision_sees":
                return json.dumps(self.seeing and sees(kwargs["memory"], bytes.fromhex(kwargs["nonce"])))
            case "agentvision_adapter_problem" | "agentvision_expect_adapter":
                return self.adapters
            case "agentvision_end_update":
                return ""
            case "agentvision_problem":
                return self.problem
            case "agentvision_received":
                return json.dumps({name: tensor_digest(tensor) for name, tensor in self.tensors.items()})
            case "agentvision_loaded":
                return str(rows_digest(self.tensors.values()))
            case "agentvision_cached":
                return "0"  # features go with the images, which `/reset_mm_cache` forgets
            case _:
                raise ValueError(f"the fake's workers have no method {method!r}")

    # --- sampling ---------------------------------------------------------------------------------------------------

    async def _generate(self, turn: Turn, headers: Mapping[str, str]) -> tuple[int, Any]:
        if "token_ids" not in turn.body:
            return 400, {"error": {"message": "1 validation error: token_ids: Field required"}}
        self.turns.append(turn)
        counts = []
        for index, part in enumerate(turn.body.get("content_parts", ())):
            if "url" in part:
                png = base64.b64decode(part["url"].partition(",")[2])
                width, height = Image.open(io.BytesIO(png)).size
                self._images[part["uuid"]] = (width // self.factor) * (height // self.factor)
            elif part["uuid"] not in self._images:
                return 400, {"error": {"message": f"Cache miss for image at index {index} but data is not provided."}}
            counts.append(self._images[part["uuid"]])
        fault = self.fault(turn)
        if fault == "hang":
            await asyncio.Event().wait()
        await self._engine_going.wait()
        while self.paused:  # what comes while it is paused waits
            await asyncio.sleep(0.005)
        pauses, version = self._pauses, self.version
        with suppress(TimeoutError):  # a pause ends it
            await asyncio.wait_for(self._pausing.wait(), self.latency_s(turn))
        if fault == "reset":
            return 200, "reset"
        if fault == "garbage":
            return 200, {"object": "chat.completion"}
        if fault is not None and fault.isdigit():
            return int(fault), {"error": {"message": f"fault {fault}"}}
        rest = iter(counts)
        prompt = [i for t in turn.prompt for i in ([t] * next(rest) if t == self.image_token_id else [t])]
        ids = said(turn.prompt, turn.body["sampling_params"]["seed"], self.stop_id)
        if self._pauses > pauses or fault == "abort":  # a pause ends what is in flight, and says what there is of it
            ids, fault = ids[: len(ids) // 2], "abort"
        turn.answer = next(_serial)
        spans = [{"version": version, "start": 0, "end": len(ids)}] if ids else None
        logprob = -9999.0 if fault == "nan" else -1.0 - turn.answer * 2.0**-20
        content = [{"token_id": i, "logprob": logprob, "rank": 1, "top_logprobs": []} for i in ids]
        return 200, {
            "usage": {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": 0}},
            "prompt_token_ids": [*prompt[:2], 7, *prompt[3:]] if fault == "wrong-ids" else prompt,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "abort" if fault == "abort" else "stop",
                    "token_ids": ids,
                    "logprobs": {"content": content},
                    "weight_versions": spans,
                }
            ],
        }


def said(prompt: tuple[int, ...], seed: int, stop_id: int) -> list[int]:
    """What any server samples of this turn."""
    draw = random.Random(hashlib.sha256(repr((prompt, seed)).encode()).digest())
    return [*(draw.randrange(10, 200) for _ in range(draw.randrange(1, 6))), stop_id]


def answer_of(logprobs: tuple[float, ...]) -> int:
    """The serial number of the answer that these log-probs came with."""
    return round((-1.0 - logprobs[0]) * 2.0**20)
