"""The agent loop on vLLM against vLLM alone, against the transformers policy, and against the trainer's log-probs.

    python bench/rollout_engine.py [--part loop|larger|others|exact|bfloat16]

`loop`: episodes of the tiny VisionThink recipe through the agent loop, then the very same turns (ids, pixels, seeds, limits),
prepared beforehand, given to the engine all at once, as `generate` would; in turns, in one process, caches reset. Four times
as many episodes are in flight as the engine has rows: a second turn cannot be asked for before the first has ended, so with
fewer the loop's batches would be smaller than raw's whatever it cost itself. Steps of the engine on either side say whether
they were as full. Also what turn 2 found of turn 1 in the prefix cache, and how often an image was preprocessed. `others`:
the same episodes by the transformers policy, and the two engines on a larger model. `exact`: |Δ log-prob| of engine and
trainer, 8 prompts of 0 to 2 images × 8 turns, in float32 and in bfloat16. Each part is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from against_raw import SIZE, against_raw, roll_out, rows_of
from engine_cases import ask_of, larger_model, segments_of

from agentvision import build
from agentvision.engine.in_process import InProcessEngine
from agentvision.engine.probe import gap_of
from agentvision.images import ImageStore
from agentvision.policies.transformers import TransformersPolicy
from agentvision.policies.vllm import VLLMPolicy
from agentvision.policy import Request, SamplingParams
from agentvision.recipe import load_recipe
from agentvision.tokens import Codec
from agentvision.train.batch import Example
from agentvision.types import TextSegment

PARTS = ("loop", "larger", "others", "exact", "bfloat16")
GROUPS, ROUNDS = 12, 15
"""Short rounds, and many: on a machine that others share, the least of each side is of a moment when it was its own."""
OVERRIDES = ("policy.backend=vllm", 'policy.options={"kv_cache_mib": 256}')
LARGER_TURNS, LARGER_TOKENS = 64, 64
LARGER_GROUPS, LARGER_ROUNDS = 4, 8
WAITING = 4
"""Episodes in flight for each row of the engine, where the loop is held against raw `generate`."""
LONG_IMAGE_PX = 384
"""Side of the pictures of the prompts whose reuse is measured beside the recipe's: 576 visual tokens each."""


# --- the loop -------------------------------------------------------------------------------------------------------


async def loop() -> dict[str, Any]:
    rows = f"policy.max_rows={GROUPS * SIZE // WAITING}"
    recipe = load_recipe("visionthink", profile="tiny", overrides=(*OVERRIDES, rows))
    policy = build.build_policy(recipe)
    assert isinstance(policy, VLLMPolicy)
    against = await against_raw(policy, recipe, groups=GROUPS, rounds=ROUNDS)
    recording = against.recording
    engine = recording.engine
    first = {ask.session: said for ask, said in zip(recording.asks, recording.said) if ask.turn == 0}
    second = {ask.session: said for ask, said in zip(recording.asks, recording.said) if ask.turn == 1}
    before = policy._codec.preprocessed
    _, once = await roll_out(policy, recipe, groups=8, start=GROUPS)  # of questions that are new
    preprocessed = policy._codec.preprocessed - before
    unique = {view.image for group in once for t in group.trajectories for view in t.views}
    long = await _long_prompts(engine, policy._codec)
    await policy.close()
    return {
        "episodes": GROUPS * SIZE,
        "turns": len(recording.asks),
        **against.figures(),
        "samples_per_s": GROUPS * SIZE / statistics.median(against.loop_s),
        "raw_samples_per_s": GROUPS * SIZE / statistics.median(against.raw_s),
        "prompt_tokens_turn_1": statistics.fmean(first[s].prompt_tokens for s in second),
        "prefix_reuse_tiny": sum(min(second[s].cached_tokens, first[s].prompt_tokens) for s in second)
        / sum(first[s].prompt_tokens for s in second),
        "group_images": len(unique),
        "group_preprocessed": preprocessed,
        **long,
    }


async def _long_prompts(engine: InProcessEngine, codec: Codec) -> dict[str, float]:
    """Two turns over prompts as long as a real image makes them; what the second found of the first's prompt."""
    draw, reused, total = random.Random(0), 0, 0
    for k in range(8):
        store = ImageStore()
        segments = segments_of(codec, store, images=1, seed=100 + k, side=LONG_IMAGE_PX)
        ask = ask_of(codec, store, segments, session=f"long{k}", seed=k, max_tokens=16)
        said = await engine.sample(ask)
        turn = TextSegment(said.ids, sampled=True, logprobs=said.logprobs)
        reply = TextSegment(tuple(codec.encode_text(f" again {draw.random()}")))
        again = await engine.sample(
            ask_of(codec, store, (*segments, turn, reply), session=f"long{k}", seed=k, max_tokens=16, turn=1)
        )
        reused += min(again.cached_tokens, said.prompt_tokens)
        total += said.prompt_tokens
    return {"prefix_reuse": reused / total, "prompt_tokens_long": total / 8}


# --- the other engine -----------------------------------------------------------------------------------------------


async def others() -> dict[str, Any]:
    recipe = load_recipe("visionthink", profile="tiny", overrides=OVERRIDES)
    plain = load_recipe("visionthink", profile="tiny")
    vllm, hf = build.build_policy(recipe), build.build_policy(plain)
    times: dict[str, list[float]] = {"vllm": [], "transformers": []}
    ratios = []
    for policy, which in ((vllm, recipe), (hf, plain)):
        await roll_out(policy, which, groups=4)
    for _ in range(ROUNDS):
        await vllm.engine.reset_caches()  # type: ignore[attr-defined]
        times["vllm"].append((await roll_out(vllm, recipe, groups=GROUPS))[0])
        times["transformers"].append((await roll_out(hf, plain, groups=GROUPS))[0])
        ratios.append(times["transformers"][-1] / times["vllm"][-1])
    await vllm.close()
    await hf.close()
    larger = await _larger()
    return {
        "vllm_vs_transformers": statistics.median(ratios),
        "transformers_samples_per_s": GROUPS * SIZE / statistics.median(times["transformers"]),
        **larger,
    }


async def larger() -> dict[str, Any]:
    """The loop on a model whose engine has more to do, with turns of about 64 tokens (it is random: they rarely end)."""
    with larger_model() as folder:
        rows = f"policy.max_rows={LARGER_GROUPS * SIZE // WAITING}"
        recipe = load_recipe("visionthink", profile="tiny", overrides=(*OVERRIDES, rows, f"model.path={folder}"))
        policy = build.build_policy(recipe)
        assert isinstance(policy, VLLMPolicy)
        against = await against_raw(policy, recipe, groups=LARGER_GROUPS, rounds=LARGER_ROUNDS)
        await against.recording.engine.close()
    return against.figures("_larger")


async def _larger() -> dict[str, float]:
    """Both on that model: turns of a fixed length, tokens a second."""
    with larger_model() as folder:
        codec = Codec.from_pretrained(folder)
        policy = VLLMPolicy.from_pretrained(folder, dtype="float32", device="cpu", context_tokens=1024)
        hf = TransformersPolicy.from_pretrained(folder, dtype="float32", device="cpu")
        store = ImageStore()
        prompts = [segments_of(codec, store, images=1, seed=k, side=96) for k in range(LARGER_TURNS)]

        def sampling(k: int) -> SamplingParams:
            return SamplingParams(max_tokens=LARGER_TOKENS, seed=k)

        async def run(one: Any, kind: str) -> float:
            began = time.perf_counter()
            await asyncio.gather(
                *(
                    one.complete(Request(f"{kind}{k}", f"{kind}{k}", (), (), segments, store, sampling(k)))
                    for k, segments in enumerate(prompts)
                )
            )
            return time.perf_counter() - began

        await run(policy, "warm")
        await run(hf, "warm")
        ratios = []
        for k in range(3):
            await policy.engine.reset_caches()  # type: ignore[attr-defined]
            ratios.append(await run(hf, f"b{k}") / await run(policy, f"a{k}"))
        await policy.close()
        await hf.close()
        return {
            "larger_parameters": sum(p.numel() for p in hf.model.parameters()),
            "larger_ratio": statistics.median(ratios),
        }


# --- log-probs ------------------------------------------------------------------------------------------------------


async def exact(dtype: str) -> dict[str, Any]:
    path = build.model_path("package://tiny-vlm")
    policy = VLLMPolicy.from_pretrained(path, dtype=dtype, device="cpu", context_tokens=1024)
    codec, store = policy._codec, ImageStore()
    examples = []
    for k in range(8):
        segments = segments_of(codec, store, images=k % 3, seed=k, side=96)
        asks = [ask_of(codec, store, segments, session=f"{k}/{j}", seed=8 * k + j, max_tokens=32) for j in range(8)]
        for said in await asyncio.gather(*(policy.engine.sample(ask) for ask in asks)):
            turn = TextSegment(said.ids, sampled=True, logprobs=said.logprobs)
            examples.append(Example((*segments, turn), advantage=0.0))
    gap = gap_of(policy.model, codec, examples, store)
    await policy.close()
    return {"tokens": gap.tokens, "mean": gap.mean, "max": gap.max}


# --- all of it ------------------------------------------------------------------------------------------------------


def measure() -> dict[str, Any]:
    """All parts, each in a process of its own."""
    results = _part("loop") | _part("larger") | _part("others")
    single, half = _part("exact"), _part("bfloat16")
    return results | {
        "logprob_mean_abs_diff": single["mean"],
        "logprob_max_abs_diff": single["max"],
        "logprob_mean_abs_diff_bf16": half["mean"],
        "logprob_max_abs_diff_bf16": half["max"],
        "logprob_tokens": single["tokens"],
    }


def _part(name: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--part", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"part {name!r} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, Any]) -> str:
    """The figures as they stand in docs/results.md."""
    r = results
    larger = r["larger_parameters"] / 1e6
    rows = [
        *rows_of(r, "", "agent loop's samples a second, of raw `generate`'s on the same turns"),
        *rows_of(r, "_larger", f"a model of {larger:.0f} M: the loop's samples a second, of raw `generate`'s"),
        (
            f"turn 2 finds of turn 1's prompt, {r['prompt_tokens_long']:.0f} tokens",
            f"{r['prefix_reuse']:.3f}",
            "≥ 0.90",
        ),
        (f"… of the tiny recipe's, {r['prompt_tokens_turn_1']:.0f} tokens", f"{r['prefix_reuse_tiny']:.3f}", ""),
        ("images of 8 groups of 16", f"{r['group_images']}", ""),
        ("… preprocessed", f"{r['group_preprocessed']}", "once each"),
        ("vLLM against the transformers policy, samples a second", f"{r['vllm_vs_transformers']:.2f} ×", ""),
        (f"… a model of {larger:.0f} M, tokens a second", f"{r['larger_ratio']:.2f} ×", ""),
    ]
    for name, label in (("", f"float32, {r['logprob_tokens']} tokens"), ("_bf16", "bfloat16")):
        mean, most = r[f"logprob_mean_abs_diff{name}"], r[f"logprob_max_abs_diff{name}"]
        rows.append((f"mean and max abs Δ log-prob, {label}", f"{mean:.1e}, {most:.1e}", ""))
    head = f"{r['episodes']} episodes, {r['turns']} turns, {r['samples_per_s']:.0f} samples a second on two cores."
    return "\n".join(
        [head, "", "| what | measured | wanted |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    part = parser.parse_args().part
    if part is None:
        results = measure()
        print(json.dumps(results, indent=1))
        print(table(results))
        return
    works = {
        "loop": loop,
        "larger": larger,
        "others": others,
        "exact": lambda: exact("float32"),
        "bfloat16": lambda: exact("bfloat16"),
    }
    torch.set_num_threads(1)
    print(json.dumps(asyncio.run(works[part]())))


if __name__ == "__main__":
    main()
