"""The real engine on the tiny model, and what the module says of its turns."""

import asyncio

import numpy as np
import torch
from PIL import Image

from agentvision import build
from agentvision.engine.probe import gap_of
from agentvision.policies.vllm import VLLMPolicy
from agentvision.train.batch import Example

from .policy_cases import Talk


def make_policy(**options) -> VLLMPolicy:
    options = {"dtype": "float32", "device": "cpu", "context_tokens": 1024, "kv_cache_mib": 64} | options
    return VLLMPolicy.from_pretrained(build.model_path("package://tiny-vlm"), **options)


def talk_of(policy, *, images=1, seed=0, session=None) -> Talk:
    random = np.random.default_rng(seed)
    sizes = [(16 * random.integers(2, 7), 16 * random.integers(2, 5)) for _ in range(images)]
    pictures = [Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    name = session or f"talk{seed}/{images}"
    return Talk(
        policy.codec, images=pictures, question="What does the red card say? " * 4, session=name, group=name, seed=seed
    )


def said_of(engine) -> list[int]:
    """How many tokens each turn in flight has said."""
    states = engine._engine.output_processor.request_states
    return [state.detokenizer.num_output_tokens() for state in list(states.values())]


async def waits(engine, turn) -> bool:
    """Whether a turn has come to the engine, whose thread has looked for work since, and is not begun."""
    while not (engine._arrived or engine._running or turn.done()):
        await asyncio.sleep(0.01)
    for _ in range(2):
        await engine._do(lambda: None)
    return bool(engine._arrived) and not engine._running


async def answers_of(policy, talks) -> tuple[float, set[int]]:
    """A turn of each; the largest |Δ log-prob| between engine and module, and the versions that sampled."""
    worst, versions = 0.0, set()
    for talk in talks:
        completion = await policy.complete(talk.request())
        versions |= {span.version for span in completion.versions}
        example = Example((*talk.segments, *completion.segments), advantage=0.0)
        with torch.no_grad():
            worst = max(worst, gap_of(policy.model, policy.codec, [example], talk.store).max)
    return worst, versions
