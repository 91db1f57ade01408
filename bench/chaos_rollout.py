"""Inference servers killed and hung under load: no turn lost, none doubled, and how long until answers flow again.

    python bench/chaos_rollout.py

Episodes of three turns with images run on two servers without a pause, and a server is broken at 20 points: 10 times killed,
10 times hung. All hangs and two of the kills are of real vLLM servers (SIGSTOP and SIGKILL; a killed one is started again by
`engine.launch`); eight kills are of servers that speak its protocol, because each start of a real one takes most of a
minute. A fault is over when every turn that was in flight anywhere at its moment is answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the servers and the conversations are the tests'

from page import write_section  # noqa: E402

from agentvision.engine.endpoint import Endpoint  # noqa: E402
from agentvision.engine.launch import ServerPlan, Servers  # noqa: E402
from agentvision.engine.pool import Pool  # noqa: E402
from agentvision.tokens import Codec  # noqa: E402
from agentvision.types import Message, TextSegment  # noqa: E402
from tests.engine.asks import ask_of  # noqa: E402
from tests.engine.test_real_server import CPU_ENV, CPU_FLAGS, TINY  # noqa: E402
from tests.engine.vllm_server import VllmServer  # noqa: E402
from tests.policies.policy_cases import Talk, picture  # noqa: E402

PLAYERS, TURNS = 12, 3
LIMIT_S = 30.0


@dataclass
class Load:
    """Episodes without a pause. `asked` and `answered` count each (session, turn); `waiting` are those in flight."""

    pool: Pool
    codec: Codec
    asked: dict[tuple[str, int], int] = field(default_factory=dict)
    answered: dict[tuple[str, int], int] = field(default_factory=dict)
    waiting: set[tuple[str, int]] = field(default_factory=set)
    over: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        players = [asyncio.create_task(self._play(slot)) for slot in range(PLAYERS)]
        while len(self.answered) < 2 * PLAYERS:
            await asyncio.sleep(0.05)
        yield self
        self.over = True
        await asyncio.gather(*players, return_exceptions=True)  # what failed is counted as lost

    async def _play(self, slot: int) -> None:
        number = 0
        while not self.over:
            number += 1
            talk = Talk(self.codec, session=f"{slot}/{number}", group=f"{slot}", seed=number, images=[picture(slot)])
            for turn in range(TURNS):
                key = (talk.session, turn)
                self.asked[key] = self.asked.get(key, 0) + 1
                self.waiting.add(key)
                sampled = await self.pool.sample(ask_of(talk, turn=turn, max_tokens=24))
                self.waiting.discard(key)
                self.answered[key] = self.answered.get(key, 0) + 1
                talk.messages += (Message("assistant", ("…",)),)
                talk.segments += (TextSegment(sampled.ids, sampled=True, logprobs=sampled.logprobs),)
                if turn + 1 < TURNS:
                    talk.reply(image=picture(turn))
            await self.pool.release(talk.session)

    async def fault(self, do: Callable[[], Awaitable[None]]) -> float:
        """Seconds from the fault until all that was in flight is answered."""
        began = time.monotonic()
        await do()
        caught = set(self.waiting)
        while caught & self.waiting and time.monotonic() - began < 10 * LIMIT_S:
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    @property
    def lost(self) -> int:
        return sum(key not in self.answered for key in self.asked)

    @property
    def doubled(self) -> int:
        return sum(count > 1 for count in self.answered.values())


async def _all_serve(pool: Pool, count: int) -> None:
    await pool.ready()
    while len(pool.controls()) < count:
        await asyncio.sleep(0.1)


async def _fake(kills: int) -> tuple[Load, list[float]]:
    codec = Codec.from_pretrained(TINY)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                VllmServer(image_token_id=codec.image_token_id, stop_id=codec.stop_ids[0], latency_s=lambda turn: 0.2)
            )
            for _ in range(2)
        ]
        pool = Pool([Endpoint(server.url, codec=codec) for server in servers])
        await _all_serve(pool, 2)
        seconds = []
        async with Load(pool, codec).running() as load:
            for point in range(kills):
                server = servers[point % 2]
                seconds.append(await load.fault(lambda server=server: asyncio.to_thread(server.die)))
                await asyncio.to_thread(server.start)
                await _all_serve(pool, 2)
        await pool.close()
        return load, seconds


async def _real(hangs: int, kills: int, logs: Path) -> tuple[Load, list[float], list[float]]:
    codec = Codec.from_pretrained(TINY)
    servers = Servers(ServerPlan(TINY, count=2, flags=CPU_FLAGS, env=CPU_ENV, logs=logs))
    pool = Pool([Endpoint(url, codec=codec) for url in await servers.start()], patience_s=600.0)
    hung: list[float] = []
    killed: list[float] = []
    try:
        await _all_serve(pool, 2)
        async with Load(pool, codec).running() as load:
            for point in range(hangs):
                group = _group(servers, point % 2)

                async def hang(group: int = group) -> None:
                    os.killpg(group, signal.SIGSTOP)

                hung.append(await load.fault(hang))
                os.killpg(group, signal.SIGCONT)
                await _all_serve(pool, 2)
            for point in range(kills):
                group = _group(servers, point % 2)

                async def kill(group: int = group) -> None:
                    os.kill(group, signal.SIGKILL)

                killed.append(await load.fault(kill))
                await asyncio.sleep(6)
                await _all_serve(pool, 2)
        return load, hung, killed
    finally:
        await pool.close()
        await servers.close()


def _group(servers: Servers, index: int) -> int:
    """The process group of a server, which is its leader's process id: the keeper's one child that leads a group."""
    keeper = servers.pids[index]
    (child,) = (Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split() or ["0"])[:1]
    return int(child)


def measure(*, logs: Path = ROOT / "runs" / "chaos") -> dict[str, Any]:
    """20 faults; takes minutes, most of them for the starts of real servers."""
    began = time.monotonic()
    fake, fake_killed = asyncio.run(_fake(8))
    real, hung, killed = asyncio.run(_real(10, 2, logs))
    return {
        "faults": len(hung) + len(killed) + len(fake_killed),
        "hung_real_s": hung,
        "killed_real_s": killed,
        "killed_fake_s": fake_killed,
        "turns": len(fake.asked) + len(real.asked),
        "lost": fake.lost + real.lost,
        "doubled": fake.doubled + real.doubled,
        "longest_s": max(hung + killed + fake_killed),
        "limit_s": LIMIT_S,
        "took_s": time.monotonic() - began,
    }


def table(results: dict[str, Any]) -> str:
    rows = [
        "| fault | points | turns lost | turns doubled | all in flight answered after (longest) |",
        "|---|---|---|---|---|",
    ]
    for name, key in [
        ("vLLM server stopped (SIGSTOP, the engine too)", "hung_real_s"),
        ("vLLM server killed (SIGKILL), started again", "killed_real_s"),
        ("protocol server killed and started again", "killed_fake_s"),
    ]:
        seconds = results[key]
        rows.append(f"| {name} | {len(seconds)} | | | {max(seconds):.1f} s |")
    rows.append(
        f"| all, over {results['turns']:,} turns | {results['faults']} | {results['lost']} | {results['doubled']} |"
        f" {results['longest_s']:.1f} s (limit {results['limit_s']:g} s) |"
    )
    return "\n".join(rows)


def main() -> None:
    """Both fault tables: of servers, and of weights (`chaos_sync`), each in docs/results.md."""
    import chaos_sync

    for name, part in (("chaos-servers", sys.modules[__name__]), ("chaos-sync", chaos_sync)):
        results = part.measure()
        path = ROOT / "bench" / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section(name, part.table(results))
        print(part.table(results), flush=True)


if __name__ == "__main__":
    main()
