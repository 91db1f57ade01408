"""Whole runs of the real thing (policy, environment, rewards, journal), on a tiny model with random weights."""

import asyncio
import json
import os
import signal
import time

import pytest

from agentvision import load_recipe, train
from agentvision.cli import main
from agentvision.engine.types import BrokenNumbers, EngineError, EngineLost, SyncError
from agentvision.errors import PluginError, RunError, TrainingStopped
from agentvision.journal import read_trajectories
from agentvision.policies.transformers import TransformersPolicy
from agentvision.recipe.resolved import write_resolved
from agentvision.run_folder import RESOLVED
from agentvision.tracking import read_events, read_metrics
from agentvision.train import run
from agentvision.train.grpo import GRPO
from agentvision.train.learner import Learner
from agentvision.train.run import _check_folder
from agentvision.train.sft import WarmStart

from .run_cases import same, steady_metrics, weights


def test_a_run_leaves_everything_that_others_rely_on(recipe, tmp_path):
    more = ("algorithm.kl.coef=0.01", "trainer.mini_batch_prompts=1", "trainer.eval_every=3", "trainer.eval_n=2")
    result = train(recipe(*more), out=tmp_path / "run", quiet=True)
    out = tmp_path / "run"
    assert result.steps == 3 and result.interrupted is None and result.moved
    assert "the model is in" in result.summary
    for name in ("recipe.resolved.yaml", "metrics.jsonl", "trajectories.jsonl", "images", "checkpoints", "report.html"):
        assert (out / name).exists(), name
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [1, 2, 3]
    names = (
        "reward accuracy format call_rate kl entropy clip_share visual_tokens_additive visual_tokens_replacement "
        "samples_per_s time_rollout_s time_reward_s time_update_s reward/letters stop/length grad_norm lr "
        "logprob_diff_mean logprob_diff_max invalid_share groups_no_signal steps_skipped visual_tokens_full"
    )
    assert set(names.split()) <= rows[0].keys()
    assert all(row["logprob_diff_max"] < 1e-4 for row in rows), "trainer and sampler disagree"
    assert rows[0]["updates"] == 2 and rows[2]["eval/reward"] is not None and rows[1].get("eval/reward") is None
    written = sum(1 for entry in read_trajectories(out) if entry.step == 1)
    # A round of resampling draws one group for each of the two that had no signal.
    assert written % 3 == 0 and 6 <= written <= 6 * (1 + rows[0]["resample_rounds"])
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert same(weights(out / "export"), weights(out / "checkpoints" / "step-000003" / "model"))
    assert not same(weights(out / "export"), weights(recipe().model.path and tmp_path_of(recipe)))
    again = train(load_recipe(str(out / "recipe.resolved.yaml")), out=tmp_path / "again", quiet=True)
    assert same(weights(again.export), weights(result.export)), "the resolved recipe repeats the run"
    exported = train(
        recipe(f"model.path={json.dumps(str(out / 'export'))}", "trainer.steps=1"), out=tmp_path / "next", quiet=True
    )
    assert exported.steps == 1


def tmp_path_of(recipe):
    from pathlib import Path

    return Path(recipe().model.path)


@pytest.mark.slow
def test_a_run_that_is_cut_off_and_resumed_ends_in_the_weights_of_one_that_was_not(recipe, tmp_path, monkeypatch):
    own = ("rewards=[{./rewards.py:letters_and_signal: {weight: 1.0}}]", "algorithm.kl.coef=0.01")
    whole = train(recipe(*own), out=tmp_path / "whole", quiet=True)
    monkeypatch.setenv("TEST_SIGNAL_AT", "13")  # past the first step, even if it drew both of its groups twice
    before = signal.getsignal(signal.SIGTERM)
    cut = train(recipe(*own), out=tmp_path / "cut", quiet=True)
    assert cut.interrupted is signal.SIGTERM and 0 < cut.steps < 3 and cut.checkpoint.is_dir() and cut.export is None
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = train(recipe(*own), out=tmp_path / "cut", resume=True, quiet=True)
    assert same(weights(resumed.export), weights(whole.export))
    assert steady_metrics(tmp_path / "cut") == steady_metrics(tmp_path / "whole")
    assert [e.step for e in read_trajectories(tmp_path / "cut")] == [
        e.step for e in read_trajectories(tmp_path / "whole")
    ]
    assert "interrupted" in [e["event"] for e in read_events(tmp_path / "cut")]


def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint(recipe, tmp_path):
    whole = train(recipe(), out=tmp_path / "whole", quiet=True)
    train(recipe("trainer.steps=2"), out=tmp_path / "cut", quiet=True)
    newest = tmp_path / "cut" / "checkpoints" / "step-000002"
    (newest / "optimizer.pt").write_bytes(b"torn")  # step 2 is damaged: step 1 is the newest whole one
    (tmp_path / "cut" / "checkpoints" / "step-000003.part").mkdir()
    resumed = train(recipe(), out=tmp_path / "cut", resume=True, quiet=True)
    assert newest.with_suffix(".corrupt").is_dir()
    assert same(weights(resumed.export), weights(whole.export))
    assert [row["step"] for row in read_metrics(tmp_path / "cut")] == [1, 2, 3]


def test_a_run_directory_is_never_overwritten(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"--resume, or a new --out"):
        train(recipe(), out=out, quiet=True)
    with pytest.raises(RunError, match=r"no run to resume"):
        train(recipe(), out=out, resume=True, quiet=True)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "./small.yaml", "--out", str(out)])
    assert exit_.value.code == 2 and "--resume" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["notes.txt"]


def test_an_engine_that_is_not_there_leaves_no_folder_behind(recipe, tmp_path, monkeypatch):
    async def nobody(self, version):
        raise EngineLost("nobody is there")

    monkeypatch.setattr(TransformersPolicy, "weights_changed", nobody)
    with pytest.raises(EngineLost, match="nobody is there"):
        train(recipe(), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_for_an_engine_is_ended_by_the_first_signal(recipe, tmp_path, monkeypatch, capsys, number):
    async def waits(self, version):
        os.kill(os.getpid(), number)
        await asyncio.sleep(600)

    monkeypatch.setattr(TransformersPolicy, "weights_changed", waits)
    recipe()
    with pytest.raises(SystemExit) as exit_:
        main(["train", "./small.yaml", "--out", str(tmp_path / "run")])
    assert exit_.value.code == 128 + number
    assert capsys.readouterr().err.strip() == "interrupted before the first step; nothing was written"
    assert not (tmp_path / "run").exists()


def test_a_signal_before_the_first_weights_ends_the_run_though_nothing_is_waited_for(recipe, tmp_path, monkeypatch):
    real = run.make_learner

    def signalled(*args, **more):
        learner = real(*args, **more)
        changed = learner.policy.weights_changed

        async def told(version):
            await changed(version)  # never suspends
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(learner.policy, "weights_changed", told)
        return learner

    monkeypatch.setattr(run, "make_learner", signalled)
    assert train(recipe(), out=tmp_path / "run", quiet=True).interrupted is signal.SIGTERM
    assert not (tmp_path / "run").exists()


def test_a_signal_while_a_run_is_read_back_leaves_its_checkpoints_as_they_were(recipe, tmp_path, monkeypatch):
    train(recipe("trainer.steps=1"), out=tmp_path / "run", quiet=True)
    real = Learner.read

    def signalled(self, path):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "read", signalled)
        cut = train(recipe(), out=tmp_path / "run", resume=True, quiet=True)
    assert cut.interrupted is signal.SIGTERM and cut.steps == 1 and cut.checkpoint.is_dir()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]


def test_a_step_whose_weights_cannot_be_brought_is_on_record(recipe, tmp_path, monkeypatch):
    real = TransformersPolicy.weights_changed

    async def fails(self, version):
        if version == 2:
            raise SyncError("it does not take them")
        await real(self, version)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TransformersPolicy, "weights_changed", fails)
        with pytest.raises(TrainingStopped, match=r"it does not take them.*step-000002"):
            train(recipe(), out=out, quiet=True)
    train(recipe(), out=out, resume=True, quiet=True)
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["time_step_s"] > 0 for row in rows)
    assert {e.step for e in read_trajectories(out)} == {1, 2, 3}


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_second_signal_in_an_update_leaves_no_checkpoint_of_half_a_step(recipe, tmp_path, monkeypatch, ahead):
    real = GRPO.update

    def twice(self, *args):
        done = real(self, *args)
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # two at one time are one
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return done

    monkeypatch.setattr(GRPO, "update", twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(recipe(f"trainer.max_staleness={ahead}", "trainer.save_every=0"), out=tmp_path / "run", quiet=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


SUPERVISED = "warm_start={steps: 3, batch_size: 4}"


def test_an_engine_that_is_gone_after_the_supervised_stage_costs_nothing_of_it(recipe, tmp_path, monkeypatch):
    async def gone(self, version):
        raise EngineLost("nobody is there")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TransformersPolicy, "weights_changed", gone)
        with pytest.raises(TrainingStopped, match=r"nobody is there.*last whole checkpoint is .*step-000000"):
            train(recipe(SUPERVISED), out=out, quiet=True)
    taught = weights(out / "warm_start")
    assert same(weights(out / "checkpoints" / "step-000000" / "model"), taught)
    train(recipe(SUPERVISED), out=out, resume=True, quiet=True)
    assert [e["step"] for e in read_events(out) if e["event"] == "warm_start"] == [3], "it is not taught again"


def test_an_engine_that_is_not_there_is_told_before_the_supervised_stage(recipe, tmp_path, monkeypatch):
    async def nobody(self):
        raise EngineLost("nobody is there")

    monkeypatch.setattr(TransformersPolicy, "ready", nobody)
    with pytest.raises(EngineLost, match="nobody is there"):
        train(recipe(SUPERVISED), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_supervised_stage_that_is_cut_off_says_that_nothing_is_kept(recipe, tmp_path, monkeypatch, capsys):
    real = WarmStart._examples

    async def signalled(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return await real(self, *args)

    command = ["train", "./small.yaml", SUPERVISED, "--out", str(tmp_path / "run")]
    recipe(SUPERVISED)
    with monkeypatch.context() as patch:
        patch.setattr(WarmStart, "_examples", signalled)
        with pytest.raises(SystemExit) as exit_:
            main(command)
    told = capsys.readouterr().err
    assert exit_.value.code == 128 + signal.SIGTERM
    assert "nothing is kept" in told and "--resume" in told
    train(recipe(SUPERVISED), out=tmp_path / "run", resume=True, quiet=True)


def test_a_run_whose_servers_are_gone_is_resumed_at_others(recipe, tmp_path):
    servers = "policy={backend: vllm, placement: server, endpoints: ['http://a:1', 'http://b:1']}"
    (tmp_path / "run").mkdir()
    write_resolved(recipe(servers), tmp_path / "run" / RESOLVED)
    moved = (servers, "policy.endpoints=['http://c:1']", "policy.options.weights_host='d:8000'")
    _check_folder(tmp_path / "run", recipe(*moved), resume=True)
    with pytest.raises(RunError, match=r"differ: policy\.options\.lora\b"):
        _check_folder(tmp_path / "run", recipe(*moved, "policy.options.lora=merged"), resume=True)


def test_resuming_refuses_a_changed_recipe_and_names_the_keys(recipe, tmp_path):
    train(recipe("trainer.steps=1"), out=tmp_path / "run", quiet=True)
    changed = recipe("trainer.lr=0.1", "algorithm.clip=0.3", "seed=4")
    with pytest.raises(RunError, match=r"differ: algorithm\.clip, seed, trainer\.lr\b"):
        train(changed, out=tmp_path / "run", resume=True, quiet=True)
    assert train(recipe("trainer.steps=2"), out=tmp_path / "run", resume=True, quiet=True).steps == 2


def test_rewards_that_fail_stop_the_run_and_leave_a_whole_checkpoint(recipe, tmp_path):
    with pytest.raises(TrainingStopped, match=r"(?s)the judge is away.*checkpoint is .*step-000000"):
        train(recipe("rewards=[{./rewards.py:broken: {weight: 1.0}}]"), out=tmp_path / "run", quiet=True)
    assert weights(tmp_path / "run" / "checkpoints" / "step-000000" / "model")
    assert "stopped" in [e["event"] for e in read_events(tmp_path / "run")]


def test_groups_without_a_signal_move_no_weight(recipe, tmp_path):
    result = train(
        recipe("rewards=[{./rewards.py:same: {weight: 1.0}}]", "trainer.steps=1"), out=tmp_path / "run", quiet=True
    )
    (row,) = read_metrics(tmp_path / "run")
    assert row["groups_no_signal"] == row["groups"] == 4 and row["updates"] == 0
    assert same(weights(result.export), weights(tmp_path_of(recipe)))
    assert not result.moved and "nothing was learned in 1 steps" in result.summary
    assert "nothing_learned" in [e["event"] for e in read_events(tmp_path / "run")]


def test_an_alarm_stops_the_run_with_a_checkpoint_from_which_it_can_go_on(recipe, tmp_path, capfd):
    """The random model never calls a tool, and here every reward is the same."""
    out, end = tmp_path / "run", "trainer.steps=4"
    own = ("rewards=[{./rewards.py:same: {weight: 1.0}}]", "trainer.save_every=0", "alarms.call_rate.steps=3")
    stop = "alarms.no_signal={mode: stop, steps: 2}"
    with pytest.raises(
        TrainingStopped, match=r"(?s)alarms\.no_signal: no group of 2 steps.*checkpoint is .*step-000002"
    ):
        train(recipe(*own, end, stop), out=out)
    assert "alarm no_signal at step 2: no group of 2 steps had rewards that differ" in capfd.readouterr().err
    alarms = [event for event in read_events(out) if event["event"] == "alarm"]
    assert [(a["name"], a["step"], a["stops"]) for a in alarms] == [("no_signal", 2, True)]
    assert read_events(out)[-1]["event"] == "saved" and "stopped" in [e["event"] for e in read_events(out)]
    assert len(read_metrics(out)) == 2 and read_metrics(out)[0]["truth_top_share"] > 0
    # It has been heard: the run goes on, and still knows its first two steps.
    resumed = train(recipe(*own, end, stop), out=out, resume=True, quiet=True)
    alarms = [event for event in read_events(out) if event["event"] == "alarm"]
    assert resumed.steps == 4
    assert [(a["name"], a["step"]) for a in alarms] == [("no_signal", 2), ("call_rate", 3)]
    assert (
        train(recipe(*own, "trainer.steps=5", "alarms.no_signal.mode=off"), out=out, resume=True, quiet=True).steps == 5
    )


def test_a_weights_schedule_follows_the_step_through_a_resume(recipe, tmp_path):
    own = ("rewards=[{./rewards.py:letters: {weight: {initial: 0, final: 1, steps: 2}}}]", "trainer.eval_every=1")
    train(recipe(*own, "trainer.steps=1"), out=tmp_path / "run", quiet=True)
    train(recipe(*own), out=tmp_path / "run", resume=True, quiet=True)
    rows = read_metrics(tmp_path / "run")
    assert [row["weight/letters"] for row in rows] == [0, 0.5, 1]
    assert all(row["reward"] == pytest.approx(row["weight/letters"] * row["reward/letters"]) for row in rows)
    assert rows[0]["updates"] == 0 and rows[2]["reward"] > 0
    assert rows[0]["eval/reward"] > 0, "an evaluation takes the weight at the end"
    for entry in read_trajectories(tmp_path / "run"):
        weight = rows[entry.step - 1]["weight/letters"]
        assert entry.trajectory.reward == pytest.approx(weight * entry.trajectory.scores["letters"].value)


def test_pictures_that_cannot_be_read_are_counted_and_stop_the_run(recipe, tmp_path):
    (tmp_path / "half_bad.py").write_text(
        "from dataclasses import replace\n"
        "from agentvision.data.glyphs import GlyphVQA\n"
        "def questions(split, columns, rows):\n"
        "    rows = list(GlyphVQA(split=split, seed=0, size=8, columns=columns, rows=rows))\n"
        "    return [replace(s, images=(b'junk',)) if i % 2 else s for i, s in enumerate(rows)]\n"
    )
    data = "data.source=./half_bad.py:questions"
    out = tmp_path / "run"
    with pytest.raises(
        TrainingStopped, match=r"images of 1\d of \d+ questions.*not a readable picture.*agentvision data check"
    ):
        train(recipe(data, "trainer.steps=30", "trainer.max_invalid_share=1"), out=out, quiet=True)
    rows = read_metrics(out)
    assert 1 <= rows[-1]["bad_images"] < 10
    assert sum(row["stop/bad_image"] for row in rows) > 0


def test_a_warm_start_is_where_the_run_and_its_reference_begin(recipe, tmp_path):
    own = ("algorithm.kl.coef=0.01", "warm_start={steps: 3, batch_size: 4}")
    train(recipe(*own, "trainer.steps=1"), out=tmp_path / "run", quiet=True)
    out = tmp_path / "run"
    (row,) = read_metrics(out)
    assert row["kl"] == pytest.approx(0, abs=1e-9), "the first step's policy is the reference"
    assert not same(weights(out / "warm_start"), weights(tmp_path_of(recipe)))
    resumed = train(recipe(*own, "trainer.steps=2"), out=out, resume=True, quiet=True)
    assert resumed.steps == 2
    assert read_metrics(out)[1]["kl"] > 0
    losses = [e["loss"] for e in read_events(out) if e["event"] == "warm_start"]
    assert len(losses) == 1


def test_a_seed_changes_everything_that_is_drawn(recipe, tmp_path):
    runs = [train(recipe("trainer.steps=1", f"seed={s}"), out=tmp_path / str(s), quiet=True) for s in (0, 1)]
    first, second = ([e.trajectory for e in read_trajectories(r.out)] for r in runs)
    assert {t.sample.id for t in first}.isdisjoint({t.sample.id for t in second})
    assert [t.turns for t in first] != [t.turns for t in second]


def test_a_policy_without_exact_logprobs_is_refused_before_anything_is_written(recipe, tmp_path):
    with pytest.raises(PluginError):
        train(recipe("policy.backend=replay"), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (EngineLost("no inference server can be asked"), True),
        (EngineError("it refuses the key"), True),
        (BrokenNumbers("an id was sampled whose log-prob is nan"), False),
        (RuntimeError("the device is gone"), False),
    ],
)
def test_weights_are_kept_when_an_engine_fails_and_not_when_their_numbers_may_be_broken(
    recipe, tmp_path, monkeypatch, error, kept
):
    async def fail(policy, ticket):
        raise error

    monkeypatch.setattr(TransformersPolicy, "_completion", fail)
    with pytest.raises(TrainingStopped, match=r"(\d+) of \1 trajectories have no valid"):
        train(recipe("trainer.steps=1"), out=tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "checkpoints" / "step-000000").is_dir() == kept


def test_the_command_trains_and_an_interrupted_one_says_so_by_its_exit_code(recipe, tmp_path, monkeypatch, capfd):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "./small.yaml", "--out", "done", "trainer.steps=1"])
    assert not exit_.value.code and (tmp_path / "done" / "export" / "config.json").is_file()
    assert "small 1/1" in capfd.readouterr().err
    monkeypatch.setenv("TEST_SIGNAL_AT", "1")
    with pytest.raises(SystemExit) as exit_:
        main(["train", "./small.yaml", "--out", "cut", "rewards=[{./rewards.py:letters_and_signal: {weight: 1.0}}]"])
    assert exit_.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "cut" / "checkpoints" / "step-000000").is_dir()
    override = "'rewards=[{./rewards.py:letters_and_signal: {weight: 1.0}}]'"
    assert capfd.readouterr().err.endswith(
        f"continue with: agentvision train ./small.yaml {override} --out cut --resume\n"
    )
