"""Weights spoilt on their way to the real engine, 100 times each way: is it seen before anything is sampled?

    python bench/chaos_sync.py

One tensor is dropped, has one bit flipped, or has its name swapped with another of its shape; or the caches of prefixes or of
image features are not reset. Then the same weights go over a network that refuses a connection, resets it, cuts it short, stalls
or flips a bit. Weights, tensor and bit are drawn anew each time. A fault is found when the sync or its probe
raises; after each the next sync must bring the engine back, and the module must score its turns as it said.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the faults and the conversations are the tests'

from agentvision.engine import lend  # noqa: E402
from agentvision.engine.sync import Sync, Weights, buckets  # noqa: E402
from agentvision.engine.types import SyncError  # noqa: E402
from agentvision.policies.vllm import VLLMPolicy  # noqa: E402
from tests.engine.faulty import FAULTS, Faulty  # noqa: E402
from tests.engine.faulty_network import NETWORK_FAULTS, Distant, FaultyNetwork  # noqa: E402
from tests.policies.vllm_cases import answers_of, make_policy, talk_of  # noqa: E402

TIMES = 100
MAX_GAP = 1e-4
BUCKET_BYTES = 1 << 20
STALL_S = 3.0
TRIES = 3
"""A machine that is away for as long as a stall may last breaks a sync too, before the fault is made."""
BEGAN = time.monotonic()


async def spoil(times: int) -> dict[str, Any]:
    """Counts by fault, and what a clean sync takes."""
    policy = make_policy()
    draw = random.Random(0)
    start = [parameter.detach().clone() for parameter in policy.model.parameters()]
    counts = {fault: {"times": 0, "found": 0, "healed": 0} for fault in FAULTS}
    syncs = []
    for fault in FAULTS:
        engine = Faulty(policy.engine, seed=FAULTS.index(fault))
        for k in range(times):
            version = policy.version + 1
            await policy.engine.sample(policy.proof.probe.ask())  # something is in every cache
            _change(policy, start, draw)
            engine.spoil(fault)
            try:
                weights = Weights.of(policy.model, version=version)
                await policy.delivery.sync.send(
                    weights, engine, partial(policy.proof.check, weights, engine, policy.model)
                )
            except SyncError:
                counts[fault]["found"] += 1
            if engine.spoilt != fault:
                raise RuntimeError(f"the fault {fault!r} was not made")
            counts[fault]["times"] += 1
            began = time.perf_counter()
            await policy.weights_changed(version)
            syncs.append(time.perf_counter() - began)
            gap, _ = await answers_of(policy, [talk_of(policy, images=k % 3, seed=k)])
            counts[fault]["healed"] += gap < MAX_GAP
        _tell(fault, counts[fault])
    results = {"faults": counts, "sync_s": median(syncs), **await _spoil_network(policy, start, draw, times)}
    await policy.close()
    return results


async def _spoil_network(
    policy: VLLMPolicy, start: list[torch.Tensor], draw: random.Random, times: int
) -> dict[str, Any]:
    sync = Sync(bucket_bytes=BUCKET_BYTES)
    counts = {fault: {"times": 0, "found": 0, "healed": 0} for fault in NETWORK_FAULTS}
    syncs, again = [], 0
    with FaultyNetwork() as network:
        sent = list(buckets(Weights.of(policy.model, version=0).stream(), BUCKET_BYTES))
        engine = Distant(policy.engine, network, buckets=len(sent))
        patience = lend.STALL_S
        for fault in NETWORK_FAULTS:
            lend.STALL_S = STALL_S if fault == "stalled" else patience  # else stalls alone take half an hour
            for k in range(times):
                version = policy.version + 1
                _change(policy, start, draw)
                weights = Weights.of(policy.model, version=version)
                send = partial(sync.send, weights, engine, partial(policy.proof.check, weights, engine, policy.model))
                for _ in range(TRIES):
                    engine.spoil(fault)
                    network.spoilt = ""
                    error = await _error_of(send)
                    if network.spoilt == fault:
                        break
                    again += 1
                else:
                    raise RuntimeError(f"the fault {fault!r} was not made") from error
                counts[fault]["found"] += error is not None
                counts[fault]["times"] += 1
                began = time.perf_counter()
                if await _error_of(send) is not None:
                    again += 1
                    began = time.perf_counter()
                    await send()
                syncs.append(time.perf_counter() - began)
                policy._version = version
                gap, _ = await answers_of(policy, [talk_of(policy, images=k % 3, seed=k)])
                counts[fault]["healed"] += gap < MAX_GAP
            _tell(f"network: {fault}", counts[fault])
    figures = {"network_sync_s": median(syncs), "network_buckets": len(sent), "network_again": again}
    return {"network_faults": counts, **figures}


async def _error_of(send: Callable[[], Awaitable[object]]) -> SyncError | None:
    try:
        await send()
    except SyncError as error:
        return error
    return None


def _tell(fault: str, counts: dict[str, int]) -> None:
    print(f"{time.monotonic() - BEGAN:.0f} s  {fault}: {counts}", file=sys.stderr, flush=True)


def _change(policy: VLLMPolicy, start: list[torch.Tensor], draw: random.Random) -> None:
    """Other weights, around where they began: each tensor by up to two per cent."""
    with torch.no_grad():
        for parameter, value in zip(policy.model.parameters(), start, strict=True):
            parameter.copy_(value * draw.uniform(0.98, 1.02))


def measure(*, times: int = TIMES) -> dict[str, Any]:
    return asyncio.run(spoil(times))


def table(results: dict[str, Any]) -> str:
    """The figures as they stand in docs/results.md."""
    lines = ["| fault | times | found before anything was sampled | next sync heals |", "|---|---|---|---|"]
    network = {f"network: {fault}": n for fault, n in results["network_faults"].items()}
    for fault, n in (results["faults"] | network).items():
        lines.append(f"| {fault} | {n['times']} | {n['found']} | {n['healed']} |")
    lines += [
        "",
        f"A sync of the tiny model with its proof and probe takes {1000 * results['sync_s']:.0f} ms (median), over the"
        f" network in {results['network_buckets']} buckets {1000 * results['network_sync_s']:.0f} ms. Over it"
        f" {results['network_again']} syncs were made once more: a stall is one of {STALL_S:g} s, and a busy machine may make it"
        " itself.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    measured = measure()
    print(json.dumps(measured))
    print(table(measured))
