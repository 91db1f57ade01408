"""A sync of an adapter against a sync of all weights: bytes that travel, seconds, and what the engine then says.

    python bench/rollout_adapter.py [--part adapter|weights|merged]

`adapter`: rank 16, for an engine that samples with it unmerged. `merged`: the same adapter within all weights. `weights`: no
adapter. Each part is a process of its own, on the larger of the two random models that `engine_cases` makes; the first sync
is not counted. |Δ log-prob| is between the engine and the module, over the turns of four conversations.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from engine_cases import larger_model

from agentvision.engine.sync import Weights
from agentvision.lora import adapter_parameters
from agentvision.policies.vllm import VLLMPolicy
from agentvision.recipe.lora import Lora

PARTS = ("weights", "merged", "adapter")
ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    part = parser.parse_args().part
    print(json.dumps(asyncio.run(timed(part)) if part else measure()))


def measure() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in PARTS:
        done = subprocess.run([sys.executable, __file__, "--part", part], stdout=subprocess.PIPE, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


async def timed(part: str) -> dict[str, Any]:
    """Bytes and median seconds of a sync, its proof and the fixed turn included, and the mean gap of the last such turn."""
    lora = None if part == "weights" else Lora(rank=16)
    with larger_model() as folder:
        policy = VLLMPolicy.from_pretrained(
            folder,
            dtype="float32",
            device="cpu",
            context_tokens=1024,
            adapter=lora,
            lora="auto" if part == "adapter" else "merged",
        )
        moving = [p for name, p in adapter_parameters(policy.model) if ".lora_B." in name] or list(
            policy.model.parameters()
        )
        weights = Weights.of(policy.model, version=0, adapter=part == "adapter")
        sent = sum(tensor.nbytes for _, tensor in weights.stream())
        await policy.weights_changed(1)
        seconds: list[float] = []
        for k in range(ROUNDS):
            with torch.no_grad():
                for parameter in moving:
                    parameter.add_(1e-3 * torch.randn_like(parameter))
            began = time.perf_counter()
            await policy.weights_changed(2 + k)
            seconds.append(time.perf_counter() - began)
        sampled = await policy.engine.sample(policy.proof.probe.ask(adapter=part == "adapter"))
        gap = policy.proof.probe.gap(policy.model, sampled)
        await policy.close()
    return {
        f"sync_{part}_bytes": sent,
        f"sync_{part}_s": statistics.median(seconds),
        f"sync_{part}_logprob_diff_max": gap.max,
    }


def table(measured: dict[str, Any]) -> str:
    told = {
        "weights": "all weights are trained and sent",
        "merged": "an adapter of rank 16, merged into all weights",
        "adapter": "the same, sent as it is",
    }
    lines = ["| a sync of | bytes sent | seconds | \\|Δ log-prob\\| after it, at most |", "|---|---|---|---|"]
    for part, label in told.items():
        size, seconds = measured[f"sync_{part}_bytes"], measured[f"sync_{part}_s"]
        gap = measured[f"sync_{part}_logprob_diff_max"]
        lines.append(f"| {label} | {size / 2**20:.1f} MiB | {seconds:.3f} | {gap:.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
