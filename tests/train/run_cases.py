"""A small run of the real thing (policy, environment, rewards, journal), on a tiny model with random weights."""

import textwrap
from types import SimpleNamespace

import torch

from agentvision.images import ImageStore
from agentvision.journal import load_image, read_trajectories
from agentvision.policies.transformers import TransformersPolicy
from agentvision.tokens import Codec
from agentvision.tracking import read_metrics
from agentvision.types import TextSegment

from ..policies.policy_cases import uncached_logprobs

OVERLAPPING = ("trainer.max_staleness=1", "trainer.keep=9", "trainer.steps=4", "algorithm.correction.kind=truncated")
SIGNALLING = "rewards=[{./rewards.py:letters_and_signal: {weight: 1.0}}]"
"""A reward that interrupts the run, at its `TEST_SIGNAL_AT`-th trajectory, by `TEST_SIGNAL`."""

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
        os.kill(os.getpid(), signal.Signals[os.environ.get("TEST_SIGNAL", "SIGTERM")])
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


def lags_of(run, model):
    """By how many versions the tokens of a run were sampled too early, and how many trajectories several versions sampled.

    Recomputed with the checkpoint of its version, each recorded log-prob has to be exact.
    """
    path = {int(folder.name[5:]): folder / "model" for folder in (run / "checkpoints").glob("step-*[0-9]")}
    path[0] = model
    codec = Codec.from_pretrained(model)
    by_version = {k: TransformersPolicy.from_pretrained(folder, device="cpu").model for k, folder in path.items()}
    lags, mixed = set(), 0
    for entry in read_trajectories(run):
        segments = entry.trajectory.segments
        said = [s for s in segments if isinstance(s, TextSegment) and s.sampled]
        store = ImageStore()
        for view in entry.trajectory.views:
            store.add(load_image(run, view.image))
        talk = SimpleNamespace(segments=segments, store=store)
        recorded = torch.tensor([p for s in said for p in s.logprobs])
        by = torch.tensor([s.version for s in said for _ in s.ids])
        mixed += len(by.unique()) > 1
        for version in by.unique().tolist():
            lags.add(entry.step - 1 - version)
            expected = uncached_logprobs(by_version[version], codec, talk)
            torch.testing.assert_close(recorded[by == version], expected[by == version], atol=1e-4, rtol=0)
    return lags, mixed


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
