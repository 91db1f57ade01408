"""Buckets over the network: the sender lends them over HTTP, and workers on other machines fetch them in ranges.

`GET /BUCKET` with the token and a range answers with these bytes of it, straight from the memory of the tensors, and nothing
else answers. It listens at one address of this machine, while a sync needs it and no longer. The token keeps strangers out;
nothing is encrypted, so this is for the network that the servers' own routes are on, which ask for no key at all.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from agentvision.engine.carry import ALIGN, Bucket, bytes_of, laid_out, told
from agentvision.engine.types import EngineError

_log = logging.getLogger(__name__)

STREAMS = 4
"""Connections that fetch one bucket: many networks bound what one of them may carry."""
_LEAST_BYTES = 8 << 20
"""A range that is worth a connection."""
_PIECE = 4 << 20
"""Bytes between two looks at the clock."""
CONNECT_S, STALL_S, WITHIN_S = 10.0, 20.0, 90.0
"""To connect; without a byte; for a whole bucket, with its connections. The last two together are less than a control call may
take, so that the trainer hears the reason."""
_HELLO_S = 5.0
_STRANGERS = 256
"""How long a connection may take to show the token, and how many that have not may be open at a time."""
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Lent:
    """Where a bucket can be fetched."""

    host: str
    port: int
    token: str
    bucket: str
    bytes: int


# --- the sender's side ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Network:
    """Lends buckets at an address of this machine. `host` ("HOST", "HOST:PORT") is what workers are told, where it is another."""

    host: str | None = None
    _open: dict[tuple[str, int], Listener] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def lending(self, local: str) -> AsyncIterator[ByNetwork]:
        """A carrier that workers reach at `local`, unless a host was named. Users at one time share what listens."""
        host, port = (local, 0) if self.host is None else address_of(self.host)
        # A name that was given may be another machine's, which passes on to any address of this one.
        at = (local if self.host is None else "::" if ":" in host else "0.0.0.0", port)
        async with self._opening:
            if at not in self._open:
                self._open[at] = Listener(*at)
            listener = self._open[at]
            listener.users += 1
        try:
            yield ByNetwork(listener, host)
        finally:
            async with self._opening:
                listener.users -= 1
                if not listener.users:
                    del self._open[at]
                    await asyncio.to_thread(listener.close)


def address_of(text: str) -> tuple[str, int]:
    """Host and port (0: any) of "HOST" or "HOST:PORT", an IPv6 address in brackets. Raises `ValueError`."""
    parts = urlsplit(f"//{text}")
    host, port = parts.hostname, parts.port
    if not host or parts.netloc != text or parts.username is not None or " " in text:
        raise ValueError(f"{text!r} is neither HOST nor HOST:PORT")
    return host, port or 0


@dataclass(frozen=True, slots=True)
class ByNetwork:
    """The carrier."""

    listener: Listener
    host: str

    @contextmanager
    def carry(self, bucket: Bucket) -> Iterator[Mapping[str, Any]]:
        places, size = laid_out(bucket)
        pieces: list[memoryview] = []
        for place, (_, tensor) in zip(places, bucket, strict=True):
            pieces.append(_view(bytes_of(tensor).cpu()))
            pieces.append(memoryview(bytes(-place.bytes % ALIGN)))
        name = secrets.token_hex(8)
        self.listener.lent[name] = pieces
        try:
            lent = Lent(self.host, self.listener.port, self.listener.token, name, size)
            yield {"lent": asdict(lent), "places": told(places)}
        finally:
            del self.listener.lent[name]


class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Answers from a thread of its own, and each connection from one more."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.token = secrets.token_hex(32)
        self.lent: dict[str, Sequence[memoryview]] = {}
        self.users = 0
        self._connections: dict[socket.socket, float | None] = {}
        """Since when each is a stranger's; None: it has shown the token."""
        self._changing = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise EngineError(
                f"cannot listen at {host}, port {port or 'any'}, for workers that fetch weights: {error}; set "
                "policy.options.weights_host to HOST or HOST:PORT where they reach this machine"
            ) from None
        threading.Thread(target=self.serve_forever, args=(_POLL_S,), name="weights-lent", daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def close(self) -> None:
        """Ends every connection too."""
        self.shutdown()
        self.server_close()
        with self._changing:
            for connection in self._connections:
                _hang_up(connection)

    def knows(self, connection: socket.socket) -> None:
        """It has shown the token."""
        with self._changing:
            self._connections[connection] = None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._changing:
            if sum(since is not None for since in self._connections.values()) >= _STRANGERS:
                return False
            self._connections[request] = time.monotonic()
        return True

    def service_actions(self) -> None:
        late = time.monotonic() - _HELLO_S
        with self._changing:
            for connection, since in self._connections.items():
                if since is not None and since < late:
                    _hang_up(connection)

    def shutdown_request(self, request: Any) -> None:
        with self._changing:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("A connection that fetches weights broke.", exc_info=True)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One range, then the connection ends."""

    protocol_version = "HTTP/1.1"
    timeout = STALL_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.close_connection = True
        listener = self.server
        assert isinstance(listener, Listener)
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Bearer {listener.token}".encode()):
            return self._refuse(403, "this token is not that of the run")
        listener.knows(self.connection)
        pieces = listener.lent.get(self.path[1:])
        if pieces is None:
            return self._refuse(404, "this bucket is not lent any more")
        wanted = re.fullmatch(r"bytes=(\d{1,18})-(\d{1,18})", self.headers.get("Range", ""))
        size = sum(len(piece) for piece in pieces)
        if wanted is None or not int(wanted[1]) <= int(wanted[2]) < size:
            return self._refuse(416, f"no such range of {size} bytes")
        start, stop = int(wanted[1]), int(wanted[2]) + 1
        self.send_response(206)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        for piece in _cut(pieces, start, stop):
            self.connection.sendall(piece)
        return None

    def _refuse(self, status: int, why: str) -> None:
        body = why.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _view(tensor: Tensor) -> memoryview:
    """The memory of bytes (n,) in the host's memory."""
    array: Any = tensor.numpy()
    return memoryview(array)


def _cut(pieces: Sequence[memoryview], start: int, stop: int) -> Iterator[memoryview]:
    """The bytes from `start` to `stop` of the pieces one after another, a few megabytes at a time."""
    at = 0
    for piece in pieces:
        low, high = max(start - at, 0), min(stop - at, len(piece))
        for k in range(low, high, _PIECE):
            yield piece[k : min(k + _PIECE, high)]
        at += len(piece)


# --- the worker's side ------------------------------------------------------------------------------------------------


def fetched(where: Mapping[str, Any], *, streams: int = STREAMS) -> Tensor:
    """The bytes (n,) of a bucket. Raises `EngineError` when they do not come, and whole."""
    lent = Lent(**where)
    memory = torch.empty(lent.bytes, dtype=torch.uint8)
    view = _view(memory)
    until = time.monotonic() + WITHIN_S
    step = max(-(-lent.bytes // streams), _LEAST_BYTES)
    starts = range(0, lent.bytes, step)
    with ThreadPoolExecutor(max(len(starts), 1), thread_name_prefix="weights-fetched") as pool:
        parts = [pool.submit(_fetch, lent, start, view[start : start + step], until) for start in starts]
        for part in parts:
            part.result()
    return memory


def _fetch(lent: Lent, start: int, into: memoryview, until: float) -> None:
    trainer = f"the trainer at {lent.host}:{lent.port}"
    connection = HTTPConnection(lent.host, lent.port, timeout=CONNECT_S)
    try:
        connection.connect()
    except OSError as error:
        raise EngineError(
            f"a worker on {socket.gethostname()!r} cannot reach {trainer} to fetch weights ({error}): open that port between "
            "the machines, or set policy.options.weights_host to HOST or HOST:PORT where it reaches the trainer"
        ) from None
    at = 0
    try:
        connection.sock.settimeout(STALL_S)
        asked = {"Authorization": f"Bearer {lent.token}", "Range": f"bytes={start}-{start + len(into) - 1}"}
        connection.request("GET", f"/{lent.bucket}", headers=asked)
        answer = connection.getresponse()
        if answer.status != 206 or answer.length != len(into):
            why = answer.read(200).decode("latin-1") if answer.status != 206 else f"{answer.length} bytes"
            raise EngineError(f"{trainer} refuses a bucket of weights (status {answer.status}: {why})")
        while at < len(into):
            if time.monotonic() > until:
                raise EngineError(f"{trainer} was too slow: a bucket of weights took more than {WITHIN_S:g} s")
            count = answer.readinto(into[at : at + _PIECE])
            if not count:
                raise EngineError(f"{trainer} broke off after {at} of {len(into)} bytes of weights")
            at += count
    except TimeoutError:
        raise EngineError(
            f"{trainer} sent nothing for {STALL_S:g} s, after {at} of {len(into)} bytes of weights"
        ) from None
    except (OSError, HTTPException) as error:
        raise EngineError(
            f"{trainer} broke off after {at} of {len(into)} bytes of weights ({type(error).__name__}: {error})"
        ) from None
    finally:
        connection.close()
