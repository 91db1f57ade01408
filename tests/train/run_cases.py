"""A small run of the real thing (policy, environment, rewards, journal), on a tiny model with random weights."""

import textwrap

import torch

from agentvision.tracking import read_metrics

REWARDS = """
import os, signal
from agentvision.data.glyphs import GlyphVQA
from agentvision.rewards import reward
from agentvision.types import Score

@reward
def letters(trajectory):
    return sum(map(str.islower, "".join(t.text for t in trajectory.turns))) / 10

@reward
def same(trajectory):
    return 1.0

@reward
def broken(trajectory):
    return Score.invalid("the judge is away")

@reward
def letters_and_signal(trajectory):
    left = int(os.environ.get("TEST_SIGNAL_AT", 0))
    os.environ["TEST_SIGNAL_AT"] = str(left - 1)
    if left == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return sum(map(str.islower, "".join(t.text for t in trajectory.turns))) / 10
"""

RECIPE = """
name: small
model: {{path: {model}, device: cpu, attn: sdpa}}
data: {{source: glyphs, options: {{columns: 3, rows: 3}}}}
env: {{first_view: {{scale: 0.5}}, tools: [resize_image]}}
protocol: {{system: "Look."}}
sampling: {{max_tokens: 6, context_tokens: 1024}}
rewards: [{{"./rewards.py:letters": {{weight: 1.0}}}}]
algorithm: {{group_size: 3, entropy: 0.001, resample: {{max_rounds: 1}}}}
trainer: {{steps: 3, prompts_per_step: 2, lr: 1.0e-3, save_every: 1, keep: 2, eval_every: 0}}
"""


def save_model(folder):
    """Write a model of the tiny kind, its weights random."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from agentvision.tiny.config import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH_PX, tiny_config, tiny_model
    from agentvision.tiny.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(["Look."])
    tiny_model(tiny_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=PATCH_PX, merge_size=MERGE, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS
    ).save_pretrained(folder)


def write_recipe(folder, model):
    """Write the small recipe, with its plug-ins beside it."""
    (folder / "rewards.py").write_text(textwrap.dedent(REWARDS))
    (folder / "small.yaml").write_text(RECIPE.format(model=model))


def steady_metrics(folder):
    """The rows of a run's metrics without what the clock says."""
    volatile = ("time_", "samples_per_s")
    return [{k: v for k, v in row.items() if not k.startswith(volatile)} for row in read_metrics(folder)]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
