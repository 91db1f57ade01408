"""vLLM servers killed and hung under load: no turn lost, none doubled, and how long until answers flow again.

    python bench/chaos_rollout.py [--only servers|sync]

Episodes of three turns with images run without a pause on two real servers of the tiny model, which `engine.launch` starts and
starts again, and a policy brings them new weights. Four things are done to a server (stopped or killed; all of it, or the engine
behind its front alone) at six moments of what a turn goes through. Where and when a server is, its endpoint tells, so a fault
comes at its moment and not at some time. It is over when every turn that was in flight anywhere at that moment is answered; a
killed server is back when it takes turns again, with the newest weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the servers and the conversations are the tests'

from page import write_section  # noqa: E402

from agentvision.engine._keeper import in_session  # noqa: E402
from agentvision.engine.endpoint import Endpoint  # noqa: E402
from agentvision.engine.launch import ServerPlan, Servers  # noqa: E402
from agentvision.engine.pool import Pool  # noqa: E402
from agentvision.engine.types import Ask, Sampled  # noqa: E402
from agentvision.policies._model import load_model  # noqa: E402
from agentvision.policies.vllm import VLLMPolicy  # noqa: E402
from agentvision.tokens import Codec  # noqa: E402
from agentvision.types import Message, TextSegment  # noqa: E402
from tests.engine.asks import ask_of  # noqa: E402
from tests.engine.test_real_server import CPU_ENV, CPU_FLAGS, TINY  # noqa: E402
from tests.policies.policy_cases import Talk, picture  # noqa: E402

PLAYERS, TURNS, TOOL_S = 8, 3, 0.05
LIMIT_S = 30.0
GIVE_UP_S = 300.0
SHORT_HANG_S = 12.0
"""Of a server beside which there is no other: longer than a look waits."""

FAULTS: Mapping[str, tuple[signal.Signals, bool]] = {
    "server stopped": (signal.SIGSTOP, True),
    "engine stopped": (signal.SIGSTOP, False),
    "server killed": (signal.SIGKILL, True),
    "engine killed": (signal.SIGKILL, False),
}
"""The signal, and whether it is the front's (with the engine, where it is stopped) or the engine's alone."""
MOMENTS: Mapping[str, float] = {"prefill": 0.01, "decode": 0.12, "between turns": 0.0, "look": 0.002, "sync": 0.005}
"""How long after its beginning each is met, in seconds."""
ALONE = "the other restarts"


@dataclass
class Moments:
    """What the endpoints go through; one function is called, on the spot, at the next moment of a kind."""

    name: str = ""
    url: str = ""
    do: Callable[[], None] | None = None

    def reach(self, name: str, url: str) -> None:
        if self.do is not None and (name, url) == (self.name, self.url):
            do, self.do = self.do, None
            do()

    async def met(self, name: str, url: str, do: Callable[[], None]) -> None:
        """Wait until it was called."""
        self.name, self.url, self.do = name, url, do
        while self.do is not None:
            await asyncio.sleep(0.01)


class Watched(Endpoint):
    """An endpoint that tells of its moments, and counts what it answers."""

    def __init__(self, url: str, *, codec: Codec, moments: Moments, answers: Counter[tuple[str, int]]) -> None:
        super().__init__(url, codec=codec)
        self._moments, self._answers = moments, answers

    def _soon(self, name: str) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(MOMENTS[name], self._moments.reach, name, self.url)

    async def sample(self, ask: Ask) -> Sampled:
        coming = [self._soon("prefill"), self._soon("decode")]
        try:
            sampled = await super().sample(ask)
        finally:
            for handle in coming:
                handle.cancel()
        self._answers[ask.session, ask.turn] += 1
        if ask.turn + 1 < TURNS:
            self._soon("between turns")
        return sampled

    async def check(self, *, timeout_s: float) -> None:
        coming = self._soon("look")
        try:
            await super().check(timeout_s=timeout_s)
        finally:
            coming.cancel()

    async def update_weights(self, info: Mapping[str, Any]) -> None:
        coming = self._soon("sync")
        try:
            await super().update_weights(info)
        finally:
            coming.cancel()


@dataclass
class Load:
    """Episodes without a pause. `asked` and `answered` hold each (session, turn); `waiting` are those in flight."""

    pool: Pool
    codec: Codec
    asked: set[tuple[str, int]] = field(default_factory=set)
    answered: set[tuple[str, int]] = field(default_factory=set)
    waiting: set[tuple[str, int]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    over: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        players = [asyncio.create_task(self._play(slot)) for slot in range(PLAYERS)]
        while len(self.answered) < 2 * PLAYERS:
            await asyncio.sleep(0.05)
        yield self
        self.over = True
        for result in await asyncio.gather(*players, return_exceptions=True):
            if isinstance(result, BaseException):  # its turn is lost
                self.problems.append(f"{type(result).__name__}: {result}")

    async def _play(self, slot: int) -> None:
        number = 0
        while not self.over:
            number += 1
            talk = Talk(self.codec, session=f"{slot}/{number}", group=f"{slot}", seed=number, images=[picture(slot)])
            for turn in range(TURNS):
                key = (talk.session, turn)
                self.asked.add(key)
                self.waiting.add(key)
                sampled = await self.pool.sample(ask_of(talk, turn=turn, max_tokens=24))
                self.waiting.discard(key)
                self.answered.add(key)
                talk.messages += (Message("assistant", ("…",)),)
                talk.segments += (TextSegment(sampled.ids, sampled=True, logprobs=sampled.logprobs),)
                if turn + 1 < TURNS:
                    await asyncio.sleep(TOOL_S)
                    talk.reply(image=picture(turn))
            await self.pool.release(talk.session)

    async def flows(self) -> None:
        """Wait until all that is in flight now is answered."""
        caught = set(self.waiting)
        until = time.monotonic() + GIVE_UP_S
        while caught & self.waiting and time.monotonic() < until:
            await asyncio.sleep(0.01)


@dataclass
class Chaos:
    """Two servers under load, and what was done to them: seconds by fault and moment."""

    servers: Servers
    pool: Pool
    policy: VLLMPolicy
    load: Load
    moments: Moments
    flowed: dict[str, dict[str, float]] = field(default_factory=dict)
    """Until all in flight was answered."""
    served: list[float] = field(default_factory=list)
    """Until a killed server took turns again."""
    returns: list[asyncio.Task[None]] = field(default_factory=list)

    async def all_serve(self) -> None:
        await asyncio.gather(*self.returns)
        self.returns.clear()
        while not all(self._is_able(index) for index in range(2)):
            await asyncio.sleep(0.05)

    def _is_able(self, index: int) -> bool:
        return self.pool._is_able(self.pool._members[index])

    async def strike(self, fault: str, moment: str, index: int) -> None:
        """One fault of one server, at its moment, until turns flow again; one that was stopped is let go on."""
        number, front = FAULTS[fault]
        leader, engine = processes(self.servers, index)
        began = 0.0

        def do() -> None:
            nonlocal began
            began = time.monotonic()
            if number is signal.SIGSTOP and front:
                os.killpg(leader, number)
            else:
                os.kill(leader if front else engine, number)

        if moment == ALONE:
            do()
        else:
            sync = None
            if moment == "sync":
                await self.all_serve()
                sync = asyncio.create_task(self.new_weights())
            await self.moments.met(moment, self.servers.urls[index], do)
            if sync is not None:
                self.returns.append(sync)
        stopped = number is signal.SIGSTOP
        if not stopped:
            self.returns.append(asyncio.create_task(self._until_it_serves(index, began)))
        elif moment == ALONE:
            asyncio.get_running_loop().call_later(SHORT_HANG_S, os.killpg, leader, signal.SIGCONT)
        await self.load.flows()
        self.flowed.setdefault(fault, {})[moment] = time.monotonic() - began
        if stopped:
            os.killpg(leader, signal.SIGCONT)
        print(f"{fault}, {moment}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)

    async def _until_it_serves(self, index: int, began: float) -> None:
        while self._is_able(index):
            await asyncio.sleep(0.05)
        while not self._is_able(index):
            await asyncio.sleep(0.05)
        self.served.append(time.monotonic() - began)

    async def new_weights(self) -> None:
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter.mul_(1.0 + 1e-6)
        await self.policy.weights_changed(self.policy.version + 1)


def processes(servers: Servers, index: int) -> tuple[int, int]:
    """The front of a server, which leads its group, and its engine."""
    keeper = servers.pids[index]
    assert keeper is not None
    group = [pid for pid in in_session(keeper) if pid != keeper]
    (leader,) = [pid for pid in group if os.getpgid(pid) == pid]
    (engine,) = [pid for pid in group if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]]
    return leader, engine


async def strike_all(logs: Path) -> dict[str, Any]:
    codec = Codec.from_pretrained(TINY)
    servers = Servers(ServerPlan(TINY, count=2, flags=CPU_FLAGS, env=CPU_ENV, logs=logs, restarts=len(FAULTS) * 6))
    moments, answers = Moments(), Counter[tuple[str, int]]()
    began = time.monotonic()
    urls = await servers.start()
    started_s = time.monotonic() - began
    pool = Pool(
        [Watched(url, codec=codec, moments=moments, answers=answers) for url in urls], patience_s=GIVE_UP_S, tries=10
    )
    model = load_model(TINY, dtype=torch.float32, device="cpu", attn="sdpa", revision=None, trust_remote_code=False)
    policy = VLLMPolicy(pool, codec, load=lambda: model, servers=servers)
    try:
        await policy.weights_changed(1)
        load = Load(pool, codec)
        chaos = Chaos(servers, pool, policy, load, moments)
        async with load.running():
            alone = list(FAULTS)
            for fault in FAULTS:
                for turn, moment in enumerate(MOMENTS):
                    await chaos.all_serve()
                    await chaos.strike(fault, moment, turn % 2)
                    if "killed" in fault and alone and turn < 2:
                        await chaos.strike(alone.pop(0), ALONE, 1 - turn % 2)
            await chaos.all_serve()
    finally:
        await policy.close()
    return {
        "flowed_s": chaos.flowed,
        "served_s": chaos.served,
        "started_s": started_s,
        "turns": len(load.asked),
        "lost": len(load.asked - load.answered),
        "doubled": sum(count > 1 for count in answers.values()),
        "problems": load.problems,
        "syncs": policy.version,
        "limit_s": LIMIT_S,
    }


def measure(*, logs: Path = ROOT / "runs" / "chaos") -> dict[str, Any]:
    """24 faults; takes about ten minutes, most of them for the servers to start again."""
    began = time.monotonic()
    results = asyncio.run(strike_all(logs))
    return {**results, "took_s": time.monotonic() - began}


def table(results: dict[str, Any]) -> str:
    flowed = results["flowed_s"]
    columns = [*MOMENTS, ALONE]
    rows = [f"| fault | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for fault, seconds in flowed.items():
        rows.append(f"| {fault} | " + " | ".join(f"{seconds[c]:.1f} s" for c in columns) + " |")
    points = [s for seconds in flowed.values() for moment, s in seconds.items() if moment != ALONE]
    served = sorted(results["served_s"])
    return "\n".join(
        [
            "Seconds until every turn that was in flight anywhere at the fault is answered:",
            "",
            *rows,
            "",
            f"Over {results['turns']:,} turns and {results['syncs']} syncs of weights {results['lost']} turns were lost and"
            f" {results['doubled']} doubled. At the {len(points)} points with another server left, turns flowed again after"
            f" {statistics.median(points):.1f} s (median), {max(points):.1f} s at most (limit {results['limit_s']:g} s); in"
            f" the last column there was none until the stopped one went on ({SHORT_HANG_S:g} s) or one had started again. A"
            f" killed server served again, with the newest weights, after {statistics.median(served):.0f} s (median of"
            f" {len(served)}), {served[-1]:.0f} s at most; both servers' first start took {results['started_s']:.0f} s.",
        ]
    )


def main() -> None:
    """Both fault tables: of servers, and of weights (`chaos_sync`), each in docs/results.md."""
    import chaos_sync

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("servers", "sync"), help="one of the two tables")
    only = parser.parse_args().only
    for name, part in (("chaos-servers", sys.modules[__name__]), ("chaos-sync", chaos_sync)):
        if only is not None and not name.endswith(only):
            continue
        results = part.measure()
        path = ROOT / "bench" / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section(name, part.table(results))
        print(part.table(results), flush=True)


if __name__ == "__main__":
    main()
