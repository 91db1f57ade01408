"""SIGKILL at any moment: what was done is not lost, and the run ends where it would have ended."""

import itertools
import multiprocessing
import os
import random
import signal
import sys

import pytest
import torch

from agentvision import load_recipe
from agentvision.journal import read_trajectories
from agentvision.run_folder import EXPORT, RESOLVED
from agentvision.train import run as training

from .run_cases import same, save_model, steady_metrics, weights, write_recipe

KILLS = 2
OVERRIDES = (
    "trainer.steps=3", "trainer.eval_every=2", "trainer.eval_n=2", "algorithm.kl.coef=0.01",
    "algorithm.resample.max_rounds=0", "warm_start={steps: 1, batch_size: 2}",
)  # fmt: skip
CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.truncate", "shutil.rmtree")
"""Audit events of a change to a folder; those of files opened to be read are left out."""


def attempt(folder, out, more, changes, die_at):
    """One attempt, in a process of its own, which is killed just before its `die_at`-th change to the run's folder."""
    number = itertools.count(1)

    def watch(event, arguments):
        if event not in CHANGES or not str(arguments[0]).startswith(str(out)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        changes.value = next(number)
        if changes.value == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.chdir(folder)
    torch.set_num_threads(1)
    training._report = lambda out: None  # a view of what is there, and most of the time of so short a run
    sys.addaudithook(watch)
    recipe = load_recipe("./small.yaml", overrides=(*OVERRIDES, *more))
    training.train(recipe, out=out, resume=(out / RESOLVED).is_file(), quiet=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("more", [(), ("model.lora.rank=4",)], ids=["weights", "adapter"])
def test_a_run_that_is_killed_at_any_moments_ends_as_one_that_is_not(tmp_path, more):
    save_model(tmp_path / "model")
    write_recipe(tmp_path, tmp_path / "model")
    context = multiprocessing.get_context("forkserver")  # what takes long to import is imported once
    modelling = ("processing", "modeling", "image_processing_pil")
    context.set_forkserver_preload(
        [__name__, "agentvision.policies.transformers", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"]
        + [f"transformers.models.qwen2_vl.{part}_qwen2_vl" for part in modelling]
    )
    changes = context.Value("i", 0)

    def run(out, *, die_at=0):
        process = context.Process(target=attempt, args=(tmp_path, out, more, changes, die_at))
        process.start()
        process.join()
        return process.exitcode

    assert run(tmp_path / "whole") == 0
    moments = random.sample(range(1, changes.value + 1), KILLS)
    codes = [run(tmp_path / "killed", die_at=moment) for moment in moments]
    told_where = f"killed before changes {moments} of {changes.value}: {codes}"
    assert codes[0] == -signal.SIGKILL and set(codes) <= {0, -signal.SIGKILL}, told_where
    assert run(tmp_path / "killed") == 0, told_where
    assert same(weights(tmp_path / "killed" / EXPORT), weights(tmp_path / "whole" / EXPORT)), told_where
    assert steady_metrics(tmp_path / "killed") == steady_metrics(tmp_path / "whole"), told_where
    assert told(tmp_path / "killed") == told(tmp_path / "whole"), told_where


def told(folder):
    """What the journal says of each trajectory."""
    entries = [(entry.step, entry.trajectory) for entry in read_trajectories(folder)]
    return [(step, t.sample.id, t.rollout, t.segments, t.reward) for step, t in entries]
