"""A network between a worker and the trainer that breaks connections, cuts them short, stalls and flips bits."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

NETWORK_FAULTS = ("refused", "broken", "truncated", "stalled", "flipped")
_HEAD = b"\r\n\r\n"


class FaultyNetwork:
    """`with FaultyNetwork() as network:` passes fetches on to where `detour` found them lent.

    `spoil` arms one fault for one connection, at a byte of the weights that is drawn; `spoilt` says what was done. A stall
    lasts until the fetcher hangs up.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._fault: str | None = None
        self.spoilt = ""
        self._upstream = ("", 0)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> FaultyNetwork:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def spoil(self, fault: str) -> None:
        self._fault, self.spoilt = fault, ""

    def detour(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """What workers are told of a lent bucket, by way of here."""
        lent = info["lent"]
        self._upstream = (lent["host"], lent["port"])
        return {**info, "lent": {**lent, "host": "127.0.0.1", "port": self.port}}

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(connection,), daemon=True).start()

    def _pass_on(self, worker: socket.socket) -> None:
        fault, self._fault = self._fault, None
        with worker, suppress(OSError):
            worker.settimeout(30)
            if fault == "refused":
                self.spoilt = fault
                return _reset(worker)
            with socket.create_connection(self._upstream, timeout=30) as trainer:
                trainer.sendall(_until_head(worker))
                head, _, rest = _until_head(trainer).partition(_HEAD)
                worker.sendall(head + _HEAD)
                size = next(int(line.split()[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
                left = self._random.randrange(size) if fault else -1
                data = rest or trainer.recv(1 << 16)
                while data:
                    if 0 <= left < len(data):
                        self.spoilt = fault or ""
                        if fault == "flipped":
                            data = data[:left] + bytes([data[left] ^ 1 << self._random.randrange(8)]) + data[left + 1 :]
                        else:
                            worker.sendall(data[:left])
                            return self._end(fault, worker)
                    left -= len(data)
                    worker.sendall(data)
                    data = trainer.recv(1 << 16)
        return None

    def _end(self, fault: str | None, worker: socket.socket) -> None:
        if fault == "broken":
            _reset(worker)
        elif fault == "stalled":
            until = time.monotonic() + 30
            while time.monotonic() < until and worker.recv(1):
                pass
        else:
            worker.shutdown(socket.SHUT_WR)


class Distant:
    """An engine that does not see the trainer's shared memory and is behind a network; everything else is the engine's.

    A fault that the network is told of by `spoil` is made at one of the next buckets.
    """

    def __init__(self, engine: Any, network: FaultyNetwork, *, buckets: int) -> None:
        self._engine, self._network, self._buckets = engine, network, buckets
        self._random = random.Random(buckets)
        self._fault: str | None = None
        self._left = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def spoil(self, fault: str) -> None:
        self._fault, self._left = fault, self._random.randrange(self._buckets)

    async def call_worker(self, method: str, **kwargs: str) -> Any:
        return ["false"] if method == "agentvision_sees" else await self._engine.call_worker(method, **kwargs)

    async def update_weights(self, info: Mapping[str, Any]) -> None:
        if self._fault is not None and not self._left:
            self._network.spoil(self._fault)
            self._fault = None
        self._left -= 1
        await self._engine.update_weights(self._network.detour(info))


def _until_head(connection: socket.socket) -> bytes:
    data = b""
    while _HEAD not in data:
        if not (more := connection.recv(1 << 16)):
            raise ConnectionError("it ended before its head did")
        data += more
    return data


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
