"""A run of two processes that sample with vLLM: two steps, then something goes wrong on one, and both end and say so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentvision.run_folder import CHECKPOINTS, SERVERS
from agentvision.tracking import read_events, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

OVERRIDES = (
    "trainer.steps=4", "trainer.prompts_per_step=2", "trainer.save_every=1", "trainer.eval_every=0", "model.device=cpu",
    "algorithm.resample.max_rounds=0",
)  # fmt: skip
VLLM = ("policy.backend=vllm", "policy.options.kv_cache_mib=64")


def launch(out, fault, *overrides, fails=True):
    """What a launch of two ranks said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.train.ranks_run", fault, "train", "visionthink", "--profile", "tiny", "--out", str(out)]
    ended = subprocess.run(
        [*command, *OVERRIDES, *overrides],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1150,
    )
    said = ended.stdout + ended.stderr
    assert (ended.returncode != 0) == fails, said
    return said


def assert_two_good_steps(out, said):
    rows = read_metrics(out)
    assert [row["step"] for row in rows][:2] == [1, 2], said
    for row in rows[:2]:  # of both ranks' tokens
        assert row["groups"] == 2 and row["logprob_diff_mean"] < 1e-4 and row["staleness_max"] == 0
        assert row["stop/policy_error"] == 0
    for step in (1, 2):
        first, second = (json.loads((out / f"rank{k}-step{step}.json").read_text()) for k in range(2))
        assert first == second and first["version"] == step, "all ranks have the same weights, and sample with them"


def stopped_by(out):
    """What the first rank wrote. (The one that is done first has the launcher end the other, whose last words may be lost.)"""
    (stopped,) = [event for event in read_events(out) if event["event"] == "stopped"]
    return stopped["reason"]


def checkpoints(out):
    return sorted(path.name for path in (out / CHECKPOINTS).iterdir())


def test_each_with_its_engine_until_one_cannot_be_brought_the_weights(tmp_path):
    out = tmp_path / "run"
    said = launch(out, "engine of rank 1", *VLLM, "policy.placement=colocate")
    assert_two_good_steps(out, said)
    last = out / CHECKPOINTS / "step-000003"
    assert f"it does not take them. The last whole checkpoint is {last}" in said
    assert stopped_by(out) == "step 3: rank 1: it does not take them", "the first rank hears it"
    assert checkpoints(out)[-1] == "step-000003", "the weights are good: they are kept"
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3], "and the step is on record"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_ends_both_after_the_same_step_and_the_run_goes_on(tmp_path, rank):
    """Also where the other waits for its rollouts: both save the same step, each with its own place in the data."""
    out, anywhere = tmp_path / "run", "model.device=auto"
    said = launch(out, f"signal to rank {rank}", anywhere)
    assert "--resume" in said, said
    assert [row["step"] for row in read_metrics(out)] == [1, 2]
    assert checkpoints(out)[-1] == "step-000002"
    launch(out, "none", anywhere, "--resume", fails=False)
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3, 4]


def test_one_that_is_killed_ends_the_others_with_a_sentence(tmp_path):
    out = tmp_path / "run"
    said = launch(out, "rank 1 is killed", *VLLM, "policy.placement=colocate")
    assert_two_good_steps(out, said)
    assert stopped_by(out).startswith("step 2: another training process is gone")
    assert checkpoints(out)[-1] == "step-000002"


def test_servers_of_the_first_that_both_sample_from_until_they_cannot_be_brought_the_weights(tmp_path):
    out = tmp_path / "run"
    said = launch(out, "servers", *VLLM, "policy.placement=separate")
    assert_two_good_steps(out, said)
    assert "it does not take them. The last whole checkpoint is" in said
    assert stopped_by(out) == "step 3: it does not take them"
    assert json.loads((out / "rank1-step3.json").read_text())["version"] == 2, (
        "the second rank has heard, and saved with it"
    )
    assert checkpoints(out)[-1] == "step-000003"
    assert [path.name for path in (out / SERVERS).iterdir()] == ["server-0.log"]
