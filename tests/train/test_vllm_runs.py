"""Whole runs whose turns the real vLLM samples: in the training process, and in servers that are killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from agentvision.engine._keeper import SHARED_MEMORY, in_session
from agentvision.evaluate import evaluate
from agentvision.journal import read_trajectories
from agentvision.recipe import load_recipe
from agentvision.tracking import read_metrics
from agentvision.train.run import train

from .run_cases import OVERLAPPING, SIGNALLING, lags_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COLOCATED = ("policy.backend=vllm", "policy.options={kv_cache_mib: 64}")
# By its short name, "uni", vLLM takes "mp" instead, with a third process that imports everything once more.
EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
SEPARATE = (
    "policy={backend: vllm, placement: separate, options: {servers: 2, kv_cache_mib: 64, "
    f"engine: {{distributed_executor_backend: {EXECUTOR}}}}}}}"
)


def test_an_overlapping_run_that_is_interrupted_goes_on_with_vllm_and_its_tokens_know_their_versions(
    recipe, tmp_path, monkeypatch
):
    own = (*COLOCATED, *OVERLAPPING, SIGNALLING, "sampling.max_tokens=24", "trainer.steps=3")
    monkeypatch.setenv("TEST_SIGNAL_AT", "13")  # past the first step, even if it drew both of its groups twice
    monkeypatch.setenv("TEST_SIGNAL", "SIGINT")
    cut = train(recipe(*own), out=tmp_path / "run", quiet=True)
    assert cut.interrupted is signal.SIGINT and 0 < cut.steps < 3 and cut.checkpoint.is_dir()
    resumed = train(recipe(*own), out=tmp_path / "run", resume=True, quiet=True)
    rows = read_metrics(tmp_path / "run")
    assert resumed.steps == 3 and [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 <= row["staleness_max"] <= 1 for row in rows) and rows[0]["logprob_diff_max"] < 1e-4
    lags, _ = lags_of(tmp_path / "run", recipe().model.path)
    assert 0 in lags and lags <= {0, 1}


def test_an_evaluation_says_the_same_with_either_engine():
    """Greedy turns of a model that is sure of them."""
    answers = {}
    for name, own in {"transformers": (), "vllm": COLOCATED}.items():
        result = evaluate(load_recipe("visionthink", profile="tiny", overrides=own), n=6)
        answers[name] = [[turn.text for turn in t.turns] for t in result.trajectories]
    assert answers["vllm"] == answers["transformers"]


def test_a_run_outlives_a_server_that_is_killed_and_leaves_nothing_when_it_is_killed_itself(recipe, tmp_path):
    recipe()
    out, steps = tmp_path / "run", 1000
    with tempfile.TemporaryDirectory(prefix="av-") as place:  # sockets want a short path
        command = [sys.executable, "-m", "agentvision", "train", "./small.yaml", "--out", str(out), SEPARATE]
        command += [f"trainer.steps={steps}", "trainer.save_every=0"]
        with (tmp_path / "log").open("w") as log:
            environment = {**os.environ, "TMPDIR": place}
            run = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            until(lambda: done(out) >= 2, run)
            keepers = keepers_of(run.pid)
            assert len(keepers) == 2
            memory = Path(f"/proc/{keepers[0]}/cmdline").read_bytes().decode().split("\0")[4]
            group = [pid for pid in in_session(keepers[0]) if pid != keepers[0]]
            (front,) = [pid for pid in group if os.getpgid(pid) == pid]
            before = done(out)
            os.kill(front, signal.SIGKILL)
            until(lambda: done(out) >= before + 3, run)  # the step that it was in, and steps without it
            processes = [pid for keeper in keepers for pid in in_session(keeper)]
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            until(lambda: not any(in_session(keeper) for keeper in keepers))
            until(lambda: not list(Path(place).glob("agentvision-*")))
            assert processes and not list(SHARED_MEMORY.glob(f"{memory}*"))
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    rows = read_metrics(out)
    stops = Counter(entry.trajectory.stop for entry in read_trajectories(out))
    assert not any(stop.broken for stop in stops), "no rollout failed"
    assert sum(stops.values()) >= sum(row["groups"] * 3 for row in rows), "and none is missing"
    assert all(row["logprob_diff_max"] < 1e-4 for row in rows)


def done(out: Path) -> int:
    return len(read_metrics(out)) if (out / "metrics.jsonl").exists() else 0


def keepers_of(pid: int) -> list[int]:
    return [
        child
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in map(int, (task / "children").read_text().split())
        if b"_keeper.py" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def until(condition, run=None, *, within_s=800.0):
    stop = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < stop, "it did not come to pass"
        assert run is None or run.poll() is None, "the run has ended"
        time.sleep(0.1)
