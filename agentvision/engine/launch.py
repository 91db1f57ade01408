"""vLLM servers as child processes, for rollouts on GPUs of their own on this machine.

Each listens on a Unix socket in a private folder: its development routes, which weights come by, call any method of the
engine and ask for no key, so on a port every user of the machine could. Each stands under a keeper (`_keeper.py`) that ends
all of its processes when it dies or when this process does; when this process has died it also removes what that left behind:
the folder, and weights in shared memory. One that dies or does not answer is started again, a bounded number of times, at the
same address; what weights it then has is the pool's affair.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from agentvision.chat.network import on_network
from agentvision.engine import _keeper
from agentvision.engine.memory import PREFIX
from agentvision.engine.types import EngineError, EngineLost
from agentvision.engine.wire import Wire

Flag: TypeAlias = str | int | float | bool | Mapping[str, Any] | Sequence[Any] | None

KEEPER = Path(_keeper.__file__)
MODULE = "vllm.entrypoints.openai.api_server"
FLAGS: Mapping[str, Flag] = {
    "served-model-name": "policy",
    "enable-scale-out": True,
    "enable-prompt-tokens-details": True,
    "logprobs-mode": "processed_logprobs",
    "generation-config": "vllm",
    "worker-extension-cls": "agentvision.engine.worker.WeightReader",
    "weight-transfer-config": {"backend": "agentvision"},
}
"""What exact rollouts and new weights need of a server."""

_RANK_NAMES = [
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_NAME",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
]
_RANK_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_")
"""What torchrun and accelerate tell a trainer's ranks: a server that reads it waits for a rendezvous that is not its own."""
_LOOK_S, _ANSWER_S = 1.0, 10.0
_SOCKETS_CHARS = 64
"""A folder with a name of fewer has room for vLLM's own sockets: a path of one is at most 107, a name there 37."""
_log = logging.getLogger(__name__)


def in_this_view(devices: str) -> str:
    """What CUDA_VISIBLE_DEVICES names the devices that this process numbers so ("0,1"). Names that are no numbers stay.

    Raises `EngineError` for one that this process does not see.
    """
    if (view := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return devices
    seen = [name.strip() for name in view.split(",") if name.strip()]
    found: list[str] = []
    for name in (name.strip() for name in devices.split(",")):
        if name.isdigit() and int(name) >= len(seen):
            raise EngineError(
                f"there is no device {name}: devices are counted within CUDA_VISIBLE_DEVICES, from 0, and it is {view!r}; let it "
                "name the servers' devices too"
            )
        found.append(seen[int(name)] if name.isdigit() else name)
    return ",".join(found)


@dataclass(frozen=True)
class ServerPlan:
    """What is started: `count` servers of one model, each on the devices named for it ("0,1": see `in_this_view`).

    `flags` are vLLM's own, by name with dashes or underscores, and win over this module's: True is a bare flag, False its
    `--no-` form, None leaves it out, a mapping or list travels as JSON. `env` is added to this process's environment.
    Without `logs` the logs go to a temporary folder that is removed at the end.
    """

    model: str
    count: int = 1
    devices: tuple[str, ...] = ()
    flags: Mapping[str, Flag] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    logs: Path | None = None
    start_s: float = 900.0
    """Until a server must answer."""
    hang_s: float = 60.0
    """A server that has answered and then does not for so long is started again."""
    restarts: int = 3
    """Of each server."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise EngineError(f"the number of servers must be at least 1, not {self.count!r}")
        if self.devices and len(self.devices) != self.count:
            raise EngineError(
                f"{self.count} servers and devices for {len(self.devices)} ({self.devices!r}); name each server's devices,"
                " as in ['0,1', '2,3']"
            )

    def command(self, socket: Path) -> list[str]:
        """The command line of one server."""
        flags = {"model": self.model, "uds": str(socket), **FLAGS}
        flags |= {name.replace("_", "-"): value for name, value in self.flags.items()}
        words = [sys.executable, "-m", MODULE]
        for name, value in flags.items():
            if value is None:
                continue
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            elif isinstance(value, (str, int, float)):
                words += [f"--{name}", str(value)]
            else:
                words += [f"--{name}", json.dumps(value)]
        return words

    def environment(self, index: int) -> dict[str, str]:
        # A key of the surroundings would be asked of us; the socket's folder is the lock here.
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in ("VLLM_API_KEY", *_RANK_NAMES) and not name.startswith(_RANK_PREFIXES)
        }
        env |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        if self.devices:
            env["CUDA_VISIBLE_DEVICES"] = in_this_view(self.devices[index])
        return env | dict(self.env)


class _Server:
    """One server: its process, its log, its socket."""

    def __init__(self, plan: ServerPlan, index: int, folder: Path, logs: Path) -> None:
        self._plan, self._index, self._folder = plan, index, folder
        self._socket = folder / f"{index}.sock"
        self.url = f"unix://{self._socket}"
        self.log = logs / f"server-{index}.log"
        self._wire = Wire(self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        self._socket.unlink(missing_ok=True)
        command = [sys.executable, "-I", str(KEEPER), str(self._folder), PREFIX, *self._plan.command(self._socket)]
        environment = self._plan.environment(self._index)
        if len(str(self._folder)) < _SOCKETS_CHARS:
            # A server that is killed leaves its sockets: here they go with the folder.
            environment.setdefault("VLLM_RPC_BASE_PATH", str(self._folder))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # an interrupt from the terminal is this process's to answer
            )

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def ready(self) -> None:
        """Wait until it answers. Raises `EngineError`, with the end of its log, when it ends or takes too long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._plan.start_s
        while not await self._answers():
            if self._process is None:
                raise EngineError(f"the vLLM server {self._index} was stopped as it started")
            if (code := self._ended()) is not None:
                raise EngineError(f"the vLLM server {self._index} ended with {code} as it started. {self._log_end()}")
            if loop.time() > until:
                raise EngineError(
                    f"the vLLM server {self._index} did not answer within {self._plan.start_s:g} s. {self._log_end()}"
                )
            await asyncio.sleep(_LOOK_S)

    async def lost(self) -> str:
        """Wait until it has died or hung; which."""
        loop = asyncio.get_running_loop()
        answered = loop.time()
        while True:
            await asyncio.sleep(_LOOK_S)
            if (code := self._ended()) is not None:
                return f"ended with {code}"
            if await self._answers():
                answered = loop.time()
            elif loop.time() - answered > self._plan.hang_s:
                return f"has not answered for {self._plan.hang_s:g} s"

    async def stop(self) -> None:
        if (process := self._process) is not None:
            assert process.stdin is not None
            process.stdin.close()  # what the keeper waits for
            await asyncio.to_thread(process.wait)
            if process.returncode < 0:  # the keeper itself was killed
                await asyncio.to_thread(_keeper.end_session, process.pid)
            self._process = None  # not before: who stops it next, when this one was cancelled, waits for its end too

    async def close(self) -> None:
        await self.stop()
        await self._wire.close()

    def _ended(self) -> int | None:
        return None if self._process is None else self._process.poll()

    async def _answers(self) -> bool:
        try:
            return (await self._wire.call("GET", "/health", timeout_s=min(_ANSWER_S, self._plan.hang_s))).status == 200
        except EngineLost:
            return False

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-12:]
        # Without a folder for it the log is gone with the servers: its path would be of no use.
        name = "its log" if self._plan.logs is None else repr(str(self.log))
        return f"The end of {name}:\n" + "\n".join(line[:300] for line in lines)


class Servers:
    """Started by `start`, ended by `close` or with this process.

    `urls` are their addresses, the same after a restart; before the start there are none.
    """

    def __init__(self, plan: ServerPlan) -> None:
        self.plan = plan
        self._folder: Path | None = None
        self._servers: list[_Server] = []
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(server.url for server in self._servers)

    @property
    def pids(self) -> tuple[int | None, ...]:
        """Of each server's keeper; None where none runs."""
        return tuple(server.pid for server in self._servers)

    async def start(self) -> tuple[str, ...]:
        """Start all and wait until all answer; their addresses. Raises `EngineError`, and then none is left."""
        try:
            await on_network(self._start())
        except BaseException:
            await self.close()
            raise
        return self.urls

    async def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="agentvision-"))  # for this user alone
        logs = self.plan.logs or self._folder
        logs.mkdir(parents=True, exist_ok=True)
        self._servers = [_Server(self.plan, index, self._folder, logs) for index in range(self.plan.count)]
        for server in self._servers:
            server.spawn()
        await asyncio.gather(*(server.ready() for server in self._servers))
        self._keepers = [asyncio.create_task(self._keep(server)) for server in self._servers]

    async def _keep(self, server: _Server) -> None:
        for left in reversed(range(self.plan.restarts + 1)):
            how = await server.lost()
            if not left:
                _log.error("The vLLM server %s %s and is not started again; its log: %s", server.url, how, server.log)
                return
            _log.warning("The vLLM server %s %s; it is started again (%d left).", server.url, how, left - 1)
            await server.stop()
            try:
                server.spawn()
                await server.ready()
            except (EngineError, OSError) as error:  # no room for a process, or for its log
                _log.warning("%s", error)

    async def close(self) -> None:
        """End all of them, with all of their processes. Takes seconds."""
        await on_network(self._close())

    async def _close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)  # none starts a server after this
        await asyncio.gather(*(server.close() for server in self._servers))
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
