"""Time one GRPO step of the tiny VisionThink job: the framework's against a plain loop's, alternating in one run.

    python bench/grpo_step.py [--rounds 5] [--threads 1 2] [--prompts 16] [--dry]

Each round runs every side once, on the same prompts and from the same weights. Their samples differ by chance, so the
ratio is also given per sampled token; and since a machine is seldom idle, also in seconds of the processor. Before
anything is timed `step_check` makes sure that the baseline is right. Then some steps of the framework are taken apart.
`--dry` writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from page import write_section
from sides import FrameworkSide, PlainSide, StepCost
from step_check import check
from stopwatch import Stopwatch
from transformers.utils import logging as transformers_logging

from agentvision.images import ImageStore
from agentvision.policies._batch import BatchState
from agentvision.policies._engine import Engine
from agentvision.policies._vision import ImageEmbeddings
from agentvision.protocol import Protocol
from agentvision.recipe import load_recipe
from agentvision.tokens import Codec
from agentvision.train.forward import SampledTokens
from agentvision.train.grpo import GRPO
from agentvision.train.prompts import PromptStream
from agentvision.train.update import Updater

RESULTS = Path(__file__).resolve().parent / "results" / "grpo_step.json"
JOB = ("algorithm.resample.max_rounds=0", "trainer.save_every=0", "trainer.eval_every=0", "trainer.steps=1000000")
"""A step is one round of prompts and one update, and nothing between steps is timed."""

SIDES = {
    "framework": "agentvision",
    "plain": "plain loop: one `generate` a rollout and turn",
    "batched": "better plain loop: one left-padded `generate` a turn for all rollouts",
}
SPANS = (
    (ImageEmbeddings, "get", "vision"),
    (Codec, "pixels", "vision"),
    (Engine, "admit", "prefill"),
    (Engine, "step", "decode"),
    (BatchState, "sample", "sampling"),
    (PromptStream, "take", "questions"),
    (ImageStore, "load", "images"),
    (ImageStore, "render", "images"),
    (ImageStore, "add", "images"),
    (Protocol, "opening", "texts"),
    (Protocol, "parse", "texts"),
    (Protocol, "tool_message", "texts"),
    (Codec, "encode_opening", "encoding"),
    (Codec, "encode_next", "encoding"),
    (Codec, "decode", "encoding"),
    (Updater, "_plan", "batching"),
    (SampledTokens, "forward", "forward"),
    (Updater, "_backward", "backward"),
    (Updater, "_step", "optimizer"),
    (GRPO, "record", "record"),
)
ENGINE = ("vision", "prefill", "decode", "sampling")
BESIDE = ("images", "texts", "encoding")
UPDATE = ("batching", "forward", "backward", "optimizer")
LABELS = {
    "vision": "rollout: image processor and vision tower",
    "prefill": "rollout: prefill",
    "decode": "rollout: decode",
    "sampling": "rollout: sampling",
    "waiting": "rollout: the engine waits (environments, tools, event loop)",
    "reward": "reward, after the last rollout",
    "batching": "update: cutting micro-batches",
    "forward": "update: forward, image processor included",
    "backward": "update: backward",
    "optimizer": "update: clipping and AdamW",
    "update_rest": "update: rest",
    "record": "record: metrics, trajectories, images",
    "rest": "rest: drawing questions, progress",
}


@dataclass(frozen=True)
class Timed:
    """What one number of threads gave: each side's steps, round by round, and the framework's seconds by phase."""

    threads: int
    steps: dict[str, list[StepCost]]
    phases: dict[str, float]
    beside: dict[str, float]
    """Seconds on other threads while the engine worked or waited."""


async def measure(sides: dict[str, Any], *, threads: int, rounds: int, taken_apart: int) -> Timed:
    torch.set_num_threads(threads)
    steps: dict[str, list[StepCost]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            cost = await side.step(number)
            steps[name].append(cost)
            print(f"threads {threads}, round {number + 1}/{rounds}, {name}: {cost.seconds:.2f} s, "
                  f"{cost.sampled_tokens} tokens sampled", flush=True)  # fmt: skip
    watch = Stopwatch()
    costs: list[StepCost] = []
    with watch.on(SPANS):
        for number in range(taken_apart):
            costs.append(await sides["framework"].step(number))
    spans = {name: seconds / taken_apart for name, seconds in watch.seconds.items()}
    return Timed(threads, steps, _phases(spans, costs), {name: spans.get(name, 0.0) for name in BESIDE})


def _phases(spans: dict[str, float], costs: Sequence[StepCost]) -> dict[str, float]:
    """Seconds a step, which sum to the step's."""
    rollout, reward, update, whole = (
        fmean(getattr(c, name) for c in costs) for name in ("rollout_s", "reward_s", "update_s", "seconds")
    )
    phases = {name: spans.get(name, 0.0) for name in (*ENGINE, *UPDATE, "record")}
    phases["waiting"] = rollout - sum(phases[name] for name in ENGINE)
    phases["update_rest"] = update - sum(phases[name] for name in UPDATE)
    phases |= {"reward": reward, "rest": whole - rollout - reward - update - phases["record"]}
    return {name: phases[name] for name in LABELS}


# --- the page -------------------------------------------------------------------------------------------------------


def ratios(timed: Timed, other: str) -> dict[str, dict[str, float]]:
    """Framework against `other`, pair by pair: samples a second, the same per sampled token, and processor seconds."""
    pairs = list(zip(timed.steps["framework"], timed.steps[other], strict=True))
    kinds = {
        "samples_per_s": [(a.trajectories / a.seconds) / (b.trajectories / b.seconds) for a, b in pairs],
        "tokens_per_s": [(a.sampled_tokens / a.seconds) / (b.sampled_tokens / b.seconds) for a, b in pairs],
        "samples_per_cpu_s": [(a.trajectories / a.cpu_s) / (b.trajectories / b.cpu_s) for a, b in pairs],
    }
    return {kind: {"median": median(v), "min": min(v), "max": max(v)} for kind, v in kinds.items()}


def page(results: Sequence[Timed], machine: dict[str, Any], checked: dict[str, float], rounds: int, job: str) -> str:
    lines = [
        f"One whole GRPO step ({job}): rollout, rewards, one update. {rounds} rounds; in each, every side once, on the"
        " same prompts and from the same weights, in one process with the same number of torch threads. Medians; ratios"
        " pair by pair, with the lowest and the highest. The framework also writes metrics, trajectories and pictures;"
        " the plain loops write nothing.",
        "",
        "| threads | side | samples/s | s a step | processor s a step | tokens a trajectory | of them sampled |"
        " framework: × samples/s | × sampled tokens/s | × samples per processor s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for timed in results:
        for name, steps in timed.steps.items():
            cells = [
                f"{median(c.trajectories / c.seconds for c in steps):.1f}",
                f"{median(c.seconds for c in steps):.2f}",
                f"{median(c.cpu_s for c in steps):.2f}",
                f"{fmean(c.tokens / c.trajectories for c in steps):.0f}",
                f"{fmean(c.sampled_tokens / c.trajectories for c in steps):.1f}",
            ]
            found = ratios(timed, name).values() if name != "framework" else ()
            cells += [f"**{r['median']:.1f}** ({r['min']:.1f}–{r['max']:.1f})" for r in found] or ["1"] * 3
            lines.append(f"| {timed.threads} | {SIDES[name]} | {' | '.join(cells)} |")
    lines += ["", "Where the framework's step goes (steps measured apart from the above; milliseconds, share):", ""]
    lines.append("| phase | " + " | ".join(f"{t.threads} thread{'s' * (t.threads > 1)}" for t in results) + " |")
    lines.append("|---|" + "---|" * len(results))
    for phase, label in LABELS.items():
        cells = [f"{1e3 * t.phases[phase]:.0f} ({t.phases[phase] / sum(t.phases.values()):.0%})" for t in results]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    beside = ", ".join(f"{name} {1e3 * results[0].beside[name]:.0f} ms" for name in BESIDE)
    lines += [
        "",
        f"On other threads, beside the engine or while it waits ({results[0].threads} thread): {beside}.",
        "",
        f"Checked before: both sides give the same ids; log-probs differ by at most {checked['logprobs']:.0e}, those of"
        f" `generate` by {checked['generate']:.0e}; the losses of one update by {checked['loss']:.0e}, the gradient"
        f" norms by {checked['grad_norm']:.0e} of themselves; the plain update lowers its loss.",
        "",
        f"{machine['cores']} cores ({machine['processor']}), load {machine['load_before']} before and"
        f" {machine['load_after']} after; torch {machine['torch']}, transformers {machine['transformers']}.",
    ]
    return "\n".join(lines)


def machine_facts() -> dict[str, Any]:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": names[0] if names else platform.machine(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "load_before": round(os.getloadavg()[0], 1),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


async def run(arguments: argparse.Namespace) -> None:
    machine = machine_facts()
    overrides = (*JOB, f"trainer.prompts_per_step={arguments.prompts}", *arguments.overrides)
    recipe = load_recipe("visionthink", profile="tiny", overrides=overrides)
    torch.set_num_threads(arguments.threads[0])
    with tempfile.TemporaryDirectory() as folder:
        framework = FrameworkSide(recipe, Path(folder) / "run")
        plain = PlainSide(recipe, framework, rows=1)
        sides: dict[str, Any] = {"framework": framework, "plain": plain}
        sides["batched"] = PlainSide(recipe, framework, rows=None)
        checked = await check(framework, plain)
        print("checked:", json.dumps(checked), flush=True)
        for side in sides.values():
            await side.warm_up()
        results = [
            await measure(sides, threads=threads, rounds=arguments.rounds, taken_apart=arguments.taken_apart)
            for threads in arguments.threads
        ]
        await framework.close()
    machine["load_after"] = round(os.getloadavg()[0], 1)
    job = f"{arguments.prompts} prompts × {recipe.algorithm.group_size} rollouts"
    text = page(results, machine, checked, arguments.rounds, job)
    print(text)
    if arguments.dry:
        return
    names = [name for name in SIDES if name != "framework"]
    found = [asdict(t) | {"ratios": {name: ratios(t, name) for name in names}} for t in results]
    RESULTS.parent.mkdir(exist_ok=True)
    whole = {"job": job, "machine": machine, "checked": checked, "results": found}
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    write_section("bench", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads, one after the other")
    parser.add_argument("--prompts", type=int, default=16, help="prompts a step")
    parser.add_argument("--taken-apart", type=int, default=3, help="steps of the framework measured by phase")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    parser.add_argument("overrides", nargs="*", default=[], help="key.path=value, as for `agentvision train`")
    transformers_logging.disable_progress_bar()
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
