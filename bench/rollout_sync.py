"""How fast weights travel to an engine: each carrier between two processes of this machine, against copying memory.

`python bench/rollout_sync.py` prints the table. A gigabyte of float32 goes in buckets to a worker that copies them into a
model, as an engine does; by reference that is in this process, and is the copy that the others are measured against. All of
it is loopback: what a real network adds is its own speed. What several connections are for is measured on one that gives each
so much a second (the kernel paces them), as networks of rented machines do. Of some rounds the least time counts.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from agentvision.engine import lend
from agentvision.engine.carry import ByReference, BySharedMemory, Carrier, taken
from agentvision.engine.lend import ByNetwork, Listener, fetched
from agentvision.engine.sync import BUCKET_BYTES, buckets

TENSORS, TENSOR_BYTES = 64, 16 << 20
ROUNDS = 3
PACED_BYTES_PER_S = 200_000_000
PACED_TENSORS = 16
_SO_MAX_PACING_RATE = 47  # Linux's; Python has no name for it


def model_of(count: int) -> list[tuple[str, Tensor]]:
    return [(f"weight{k}", torch.randn(TENSOR_BYTES // 4)) for k in range(count)]


def work(told: Connection, count: int) -> None:
    """A worker: takes the buckets that it is told of, and says so."""
    torch.set_num_threads(1)
    model = {name: tensor.zero_() for name, tensor in model_of(count)}
    told.send("ready")
    while (said := told.recv()) is not None:
        info, streams = said
        for name, tensor in taken(info, partial(fetched, streams=streams)):
            model[name].copy_(tensor)
        told.send("taken")


@contextmanager
def worker(count: int) -> Iterator[Connection]:
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=work, args=(there, count), daemon=True)
    process.start()
    here.recv()
    yield here
    here.send(None)
    process.join()


def send(weights: list[tuple[str, Tensor]], carrier: Carrier, worker: Connection, *, streams: int) -> dict[str, float]:
    """Seconds of a whole model, and those of them in which the sender prepares buckets."""
    began, prepared = time.perf_counter(), 0.0
    for bucket in buckets(weights, BUCKET_BYTES):
        carrying = carrier.carry(bucket)
        entered = time.perf_counter()
        info = carrying.__enter__()
        prepared += time.perf_counter() - entered
        worker.send((info, streams))
        worker.recv()
        carrying.__exit__(None, None, None)
    return {"s": time.perf_counter() - began, "prepare_s": prepared}


def by_reference(weights: list[tuple[str, Tensor]]) -> float:
    model = {name: torch.zeros_like(tensor) for name, tensor in weights}

    def once() -> float:
        began = time.perf_counter()
        for bucket in buckets(weights, BUCKET_BYTES):
            with ByReference().carry(bucket) as info:
                for name, tensor in taken(info, fetched):
                    model[name].copy_(tensor)
        return time.perf_counter() - began

    return min(once() for _ in range(ROUNDS))


def least(weights: list[tuple[str, Tensor]], carrier: Carrier, worker: Connection, *, streams: int) -> dict[str, float]:
    rounds = [send(weights, carrier, worker, streams=streams) for _ in range(ROUNDS)]
    return min(rounds, key=lambda times: times["s"])


def paced(weights: list[tuple[str, Tensor]], carrier: ByNetwork, worker: Connection) -> dict[str, float]:
    """Seconds by the number of connections, each held to so many bytes a second."""
    plain = lend._Handler.setup

    def setup(handler: Any) -> None:
        handler.request.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, PACED_BYTES_PER_S)
        plain(handler)

    lend._Handler.setup = setup
    try:
        return {str(n): send(weights, carrier, worker, streams=n)["s"] for n in (1, lend.STREAMS)}
    finally:
        lend._Handler.setup = plain


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    weights = model_of(TENSORS)
    size = sum(tensor.nbytes for _, tensor in weights)
    listener = Listener("127.0.0.1", 0)
    network = ByNetwork(listener, "127.0.0.1")
    results: dict[str, Any] = {"sync_bytes": size, "sync_bucket_bytes": BUCKET_BYTES, "sync_streams": lend.STREAMS}
    results["sync_reference_s"] = by_reference(weights)
    with worker(TENSORS) as there:
        ways: list[tuple[str, Carrier, int]] = [
            ("shared_memory", BySharedMemory(), 1),
            ("network", network, lend.STREAMS),
            ("network_1_stream", network, 1),
        ]
        for name, carrier, streams in ways:
            times = least(weights, carrier, there, streams=streams)
            results |= {f"sync_{name}_s": times["s"], f"sync_{name}_prepare_s": times["prepare_s"]}
        few = weights[:PACED_TENSORS]
        results["sync_paced_bytes_per_s"] = PACED_BYTES_PER_S
        results["sync_paced_bytes"] = sum(tensor.nbytes for _, tensor in few)
        results["sync_paced_s"] = paced(few, network, there)
    listener.close()
    for name in ("reference", "shared_memory", "network", "network_1_stream"):
        results[f"sync_{name}_gb_per_s"] = size / results[f"sync_{name}_s"] / 1e9
    return results


def table(results: dict[str, Any]) -> str:
    """The figures as they stand in docs/results.md."""
    size, bucket = results["sync_bytes"], results["sync_bucket_bytes"]
    lines = [
        f"{size / 1e9:.2f} GB of float32 in buckets of {bucket >> 20} MiB, over loopback; the least of {ROUNDS} rounds.",
        "",
        "| carrier | s | GB/s | of copying memory |",
        "|---|---|---|---|",
    ]
    for name, what in (
        ("reference", "by reference: the copy into the model alone"),
        ("shared_memory", "shared memory"),
        ("network", f"network, {results['sync_streams']} connections"),
        ("network_1_stream", "network, 1 connection"),
    ):
        seconds = results[f"sync_{name}_s"]
        ratio = results["sync_reference_s"] / seconds
        lines.append(f"| {what} | {seconds:.2f} | {results[f'sync_{name}_gb_per_s']:.2f} | {ratio:.2f} |")
    one, several = (results["sync_paced_s"][str(n)] for n in (1, results["sync_streams"]))
    lines += [
        "",
        f"On a network that gives each connection {results['sync_paced_bytes_per_s'] / 1e6:.0f} MB/s, "
        f"{results['sync_paced_bytes'] / 1e9:.2f} GB take {one:.2f} s by one connection and {several:.2f} s by "
        f"{results['sync_streams']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    measured = measure()
    print(json.dumps(measured, indent=1))
    print(table(measured))
