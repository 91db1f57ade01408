"""A server on loopback that speaks the OpenAI chat-completions protocol, and fails as it is told to.

It runs on its own event loop in a thread, so it serves tests and benches of any kind: `with OpenAIServer() as server:` and
`server.url`. Sockets are its own, since half of the faults are none that a web framework can produce (a reset, a body that
stops). Every request is recorded with its times, so that what a client did can be compared with what was possible.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

FAULTS = ("429", "429-retry-after", "500", "hang", "reset", "truncated", "empty", "wrong-json", "wrong-shape")
"""What can be wrong with one response: its status, its socket or its body."""

STATUS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
}
STATUS |= {429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable"}


@dataclass
class Request:
    """What one request asked, and when it was served; times are of `time.monotonic`."""

    index: int  # counted from 0 in the order of arrival
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    fault: str | None
    began: float
    ended: float | None = None  # None: it is in flight, or the client left
    in_flight: int = 0  # with itself, when it arrived

    @property
    def text(self) -> str:
        """The last message, as text."""
        return str(self.body["messages"][-1]["content"])


Answer = Callable[[Request], "str | Mapping[str, Any]"]
"""The reply's text, or the whole message where there is more in it than text."""
Fault = Callable[[Request], "str | None"]


def seeded_faults(share: float, *, seed: int = 0, kinds: Sequence[str] = FAULTS) -> Fault:
    """A fault for `share` of the requests, the same ones in every run."""

    def fault(request: Request) -> str | None:
        draw = random.Random(f"{seed} {request.index}")
        return draw.choice(list(kinds)) if draw.random() < share else None

    return fault


def outage_from(index: int, kind: str = "500") -> Fault:
    """Nothing works from the k-th request on."""
    return lambda request: kind if request.index >= index else None


@dataclass
class OpenAIServer:
    """`fault` names what is wrong with a request: one of `FAULTS`, or a status such as "401"."""

    answer: Answer = lambda request: "Score: 1"
    fault: Fault = lambda request: None
    latency_s: float = 0.0
    retry_after: str = "1"  # what a "429-retry-after" says
    hang_s: float = 60.0
    usage: tuple[int, int] | None = (10, 3)  # prompt and completion tokens of each reply; None: it says nothing
    api_key: str | None = None  # demanded where given
    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    finish: str = "stop"
    error: str = "fault {status}"  # what a failing status says
    code: str = "fault"
    path: str = "/v1/chat/completions"
    port: int = 0
    _loop: asyncio.AbstractEventLoop = field(init=False, repr=False)
    _thread: threading.Thread = field(init=False, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def most_in_flight(self) -> int:
        return max((request.in_flight for request in self.requests), default=0)

    def __enter__(self) -> OpenAIServer:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="openai-server", daemon=True)
        self._thread.start()
        if not ready.wait(10):
            raise RuntimeError("The server did not start within 10 s.")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024, limit=2**24)
        )
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._serve_one(reader, writer):
                pass
        with suppress(Exception):
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection can serve another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
        request = Request(len(self.requests), body, headers, None, time.monotonic())
        self.requests.append(request)
        self.in_flight += 1
        request.in_flight = self.in_flight
        try:
            if not head[0].startswith(f"POST {self.path} "):
                request.fault = "404"
            elif self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
                request.fault = "401"
            else:
                request.fault = self.fault(request)
            if request.fault == "hang":
                with suppress(TimeoutError):  # until the client leaves
                    await asyncio.wait_for(reader.read(), self.hang_s)
                request.ended = time.monotonic()
                return False
            await asyncio.sleep(self.latency_s)
            request.ended = time.monotonic()
            return await self._respond(request, writer)
        finally:
            self.in_flight -= 1

    async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        match request.fault:
            case None:
                writer.write(_response(200, self._completion(request)))
            case "reset":  # an RST, not a polite end
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return False
            case "truncated":  # the head promises more than comes
                whole = _response(200, self._completion(request))
                writer.write(whole[: whole.index(b"\r\n\r\n") + 24])
                await writer.drain()
                return False
            case "empty":
                writer.write(_response(200, b""))
            case "wrong-json":
                writer.write(_response(200, b'{"id": "chatcmpl", "choices": [{"message": {"content": "Score: 1"'))
            case "wrong-shape":
                writer.write(_response(200, b'{"object": "chat.completion", "verdict": "Score: 1"}'))
            case "429-retry-after":
                writer.write(_response(429, self._error(429), {"Retry-After": self.retry_after}))
            case status if status.isdigit():
                writer.write(_response(int(status), self._error(int(status))))
            case fault:
                raise ValueError(f"{fault!r} is no fault.")
        await writer.drain()
        return True

    def _completion(self, request: Request) -> bytes:
        answer = self.answer(request)
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        completion = {
            "id": f"chatcmpl-{request.index}",
            "object": "chat.completion",
            "created": 0,
            "model": request.body.get("model"),
            "choices": [{"index": 0, "finish_reason": self.finish, "message": message}],
        }
        if self.usage is not None:
            prompt, reply = self.usage
            completion["usage"] = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
        return json.dumps(completion).encode()

    def _error(self, status: int) -> bytes:
        message = self.error.format(status=status)
        return json.dumps({"error": {"message": message, "type": self.code, "param": None, "code": self.code}}).encode()


def _response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} {STATUS.get(status, 'Status')}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
