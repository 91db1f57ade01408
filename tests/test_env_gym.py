"""The Gymnasium adapter passes Gymnasium's own checks."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

from agentvision.compute import VisionSpec
from agentvision.env import FirstView, VisionEnv
from agentvision.env_gym import GymEnv
from agentvision.images import ImageStore
from agentvision.protocol import Protocol
from agentvision.tools import resize_image
from agentvision.types import Sample, StopReason

CALL = "<think>.</think><tool_call>" + json.dumps({"name": "resize_image", "arguments": {}}) + "</tool_call>"
ANSWER = "<think>.</think><answer>blue</answer>"


def make(**options) -> GymEnv:
    store = ImageStore()
    inner = VisionEnv(
        tools=[resize_image],
        vision=VisionSpec(),
        store=store,
        protocol=Protocol(),
        first_view=FirstView(0.5),
        max_turns=3,
    )
    samples = [Sample(f"s{k}", "Which colour? \u2013 é", (Image.new("RGB", (200 + k, 90), "blue"),)) for k in range(5)]
    return GymEnv(inner, samples, store=store, render_mode="rgb_array", **options)


def test_it_passes_gymnasiums_own_check():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*environment not having a spec.*")
        check_env(make())


def test_an_episode():
    env = make(reward=lambda result: float(result.answer == "blue"))
    observation, info = env.reset(seed=3, options={"sample": 2})
    assert info["sample"] == "s2" and "Which colour? \u2013 é" in observation["text"]
    assert env.observation_space.contains(observation)
    small = info["views"][0]
    assert (observation["image"][: small.size[1], : small.size[0]] == (0, 0, 255)).all()
    observation, reward, terminated, truncated, info = env.step(CALL)
    assert (reward, terminated, truncated) == (0.0, False, False) and info["views"][0].index == 2
    assert info["views"][0].tokens > small.tokens and np.array_equal(env.render(), observation["image"])
    _, reward, terminated, truncated, info = env.step(ANSWER)
    assert (reward, terminated, truncated, info["stop"]) == (1.0, True, False, StopReason.ANSWERED)
    env.close()
    env.close()


def test_a_limit_truncates_and_text_is_cut():
    env = make(max_chars=50)
    observation, _ = env.reset(seed=0)
    assert len(observation["text"]) == 50
    ends = [env.step(CALL)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_the_seed_draws_the_sample():
    env = make()
    drawn = [env.reset(seed=seed)[1]["sample"] for seed in range(12)]
    assert len(set(drawn)) > 2 and drawn == [env.reset(seed=seed)[1]["sample"] for seed in range(12)]
    with pytest.raises(ValueError, match="at least one sample"):
        GymEnv(env.env, [], store=ImageStore())


def test_without_gymnasium_the_error_says_what_to_install():
    code = "import sys; sys.modules['gymnasium'] = None\nimport agentvision.env\nimport agentvision.env_gym"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "agentvision[gym]" in done.stderr
