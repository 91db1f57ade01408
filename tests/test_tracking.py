"""Metrics are written whatever happens to wandb, and a resumed run has each step once."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import agentvision.tracking
from agentvision.errors import RunError
from agentvision.geometry import Affine
from agentvision.images import ImageStore
from agentvision.recipe import Recipe
from agentvision.tracking import Tracker, read_events, read_metrics, redact
from agentvision.types import Group, Sample, StopReason, Trajectory, View


def recipe(**wandb: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "model": {"path": "m"},
            "data": {"source": "glyphs"},
            "rewards": ["accuracy"],
            "tracking": {"wandb": wandb or None},
        }
    )


def groups(store: ImageStore) -> list[Group]:
    key = store.add(Image.new("RGB", (8, 6), (200, 30, 30)))
    view = View(1, key, key, Affine(), (8, 6), (8, 6), 1, "first_view")
    sample = Sample("q1", "What is it?", answer="red")
    seen = Trajectory(
        sample, turns=(), messages=(), views=(view,), stop=StopReason.ANSWERED, answer="red", originals=(key,)
    )
    blind = Trajectory(sample, turns=(), messages=(), views=(), stop=StopReason.ENV_ERROR, rollout=1)
    return [Group(sample, (seen, blind))]


@pytest.fixture(autouse=True)
def environment_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    monkeypatch.delenv("WANDB_DATA_DIR")


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module called wandb whose runs keep what they are given."""
    module: Any = ModuleType("wandb")
    module.inits, module.logs, module.finished, module.alerts = [], [], [], []

    class Table:
        def __init__(self, columns: list[str], **_: Any) -> None:
            self.columns, self.rows = columns, []

        def add_data(self, *row: Any) -> None:
            assert len(row) == len(self.columns)
            self.rows.append(row)

    def init(**options: Any) -> Any:
        module.inits.append(options)
        return SimpleNamespace(
            log=lambda row, step: module.logs.append((step, row)),
            finish=lambda exit_code: module.finished.append(exit_code),
            alert=lambda **alert: module.alerts.append(alert),
        )

    module.init, module.Table = init, Table
    module.login = lambda *, prompt, verify: True
    module.Image = lambda image, caption: (image.size, caption)
    module.Settings = lambda **options: options
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_each_step_is_on_disk_at_once_flat_and_in_strict_json(tmp_path: Path) -> None:
    with Tracker.open(tmp_path, recipe()) as tracker:
        tracker.step({"step": 0, "kl": float("nan"), "grad_norm": float("inf"), "stop": {"answered": 0.5}})
        line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "step": 0,
        "kl": None,
        "grad_norm": None,
        "stop/answered": 0.5,
    }
    assert read_metrics(tmp_path) == [json.loads(line)]


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    import numpy

    with Tracker.open(tmp_path, recipe()) as tracker:
        tracker.step({"step": 1, "a": numpy.float32(0.5), "b": numpy.int64(3), "c": True, "d": numpy.float64("nan")})
    assert read_metrics(tmp_path) == [{"step": 1, "a": 0.5, "b": 3, "c": True, "d": None}]


def test_a_row_without_a_step_is_a_bug(tmp_path: Path) -> None:
    with Tracker.open(tmp_path, recipe()) as tracker, pytest.raises(ValueError, match="integer 'step'"):
        tracker.step({"reward": 1.0})


def test_events_carry_their_time(tmp_path: Path) -> None:
    before = time.time()
    with Tracker.open(tmp_path, recipe()) as tracker:
        tracker.event("saved", step=5, path="checkpoints/5")
    started, saved = read_events(tmp_path)
    assert started["event"] == "started"
    assert (saved["event"], saved["step"], saved["path"]) == ("saved", 5, "checkpoints/5")
    assert before - 1 <= saved["time"] <= time.time() + 1


def test_a_resumed_run_has_each_step_once_and_no_torn_line(tmp_path: Path) -> None:
    with Tracker.open(tmp_path, recipe()) as tracker:
        for step in range(5):
            tracker.step({"step": step, "reward": 0.0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 5, "rew')
    assert len(read_metrics(tmp_path)) == 5
    with Tracker.open(tmp_path, recipe(), resume_step=3) as tracker:
        tracker.step({"step": 3, "reward": 1.0})
    assert [(row["step"], row["reward"]) for row in read_metrics(tmp_path)] == [(0, 0), (1, 0), (2, 0), (3, 1)]
    assert [row["event"] for row in read_events(tmp_path)] == ["started", "resumed"]


def test_damaged_metrics_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2: damaged"):
        read_metrics(tmp_path)
    with pytest.raises(RunError, match="cannot read"):
        read_metrics(tmp_path / "nothing")


def test_nothing_is_imported_when_the_recipe_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    store = ImageStore()
    with Tracker.open(tmp_path, recipe()) as tracker:
        tracker.step({"step": 0})
        tracker.rollouts(0, groups(store), store)
    assert [row["event"] for row in read_events(tmp_path)] == ["started"]


def test_wandb_gets_the_numbers_the_rollouts_and_their_images(tmp_path: Path, fake_wandb: Any) -> None:
    store = ImageStore()
    with Tracker.open(tmp_path, recipe(project="p", mode="offline", rollouts=4)) as tracker:
        tracker.step({"step": 2, "reward": 0.5, "kl": float("nan")})
        tracker.rollouts(2, groups(store), store)
    (options,) = fake_wandb.inits
    assert (options["project"], options["mode"], options["config"]["seed"]) == ("p", "offline", 0)
    (_, numbers), (step, shown) = fake_wandb.logs
    assert numbers == {"step": 2, "reward": 0.5}
    assert step == 2
    table = shown["rollouts"]
    assert dict(zip(table.columns, table.rows[0], strict=True))["view 1"] == ((8, 6), "first_view 8x6")
    assert dict(zip(table.columns, table.rows[1], strict=True))["stop"] == "env_error"
    assert fake_wandb.finished == [0]


def test_a_resumed_run_is_the_same_run_in_wandb(tmp_path: Path, fake_wandb: Any) -> None:
    for resume_step in (None, 1):
        Tracker.open(tmp_path, recipe(project="p"), resume_step=resume_step).close(failed=True)
    first, second = fake_wandb.inits
    assert first["id"] == second["id"]
    assert fake_wandb.finished == [1, 1]


def test_a_wandb_that_cannot_start_costs_a_warning(
    tmp_path: Path, fake_wandb: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: Any) -> Any:
        raise PermissionError("key 0123456789abcdef is not valid")

    fake_wandb.init = refuse
    with caplog.at_level(logging.WARNING), Tracker.open(tmp_path, recipe(project="p")) as tracker:
        tracker.step({"step": 0})
    assert "wandb is off" in caplog.text
    everything = caplog.text + "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
    assert "0123456789abcdef" not in everything
    assert len(read_metrics(tmp_path)) == 1


def test_the_real_wandb_without_a_login_says_so_at_once_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with caplog.at_level(logging.WARNING), Tracker.open(tmp_path / "run", recipe(project="p")) as tracker:
        tracker.step({"step": 0})
    assert "nobody is logged in: run `wandb login`, or set tracking.wandb.mode=offline" in caplog.text
    assert len(read_metrics(tmp_path / "run")) == 1


def test_a_wandb_that_breaks_midway_is_left_alone(tmp_path: Path, fake_wandb: Any) -> None:
    with Tracker.open(tmp_path, recipe(project="p")) as tracker:
        fake_wandb.Image = None
        store = ImageStore()
        tracker.rollouts(0, groups(store), store)
        for step in range(3):
            tracker.step({"step": step})
    assert [row["event"] for row in read_events(tmp_path)] == ["started", "wandb_off"]
    assert len(read_metrics(tmp_path)) == 3
    assert fake_wandb.logs == []


def test_an_alarm_is_an_event_and_an_alert(tmp_path: Path, fake_wandb: Any) -> None:
    with Tracker.open(tmp_path, recipe(project="p")) as tracker:
        tracker.alarm("call_rate", "it is 1", step=7, stops=True)
    event = read_events(tmp_path)[1]
    del event["time"]
    assert event == {"event": "alarm", "step": 7, "name": "call_rate", "text": "it is 1", "stops": True}
    assert fake_wandb.alerts == [{"title": "call_rate at step 7", "text": "it is 1", "level": "WARN"}]


def test_a_wandb_that_never_finishes_does_not_keep_the_run(
    tmp_path: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agentvision.tracking, "_WANDB_TIMEOUT_S", 0.05)
    tracker = Tracker.open(tmp_path, recipe(project="p"))
    over = threading.Event()
    tracker._wandb._run.finish = lambda exit_code: over.wait(60)  # type: ignore[union-attr]
    start = time.monotonic()
    tracker.close()
    assert time.monotonic() - start < 30
    assert "wandb sync" in caplog.text
    over.set()


def test_the_real_wandb_takes_it_all_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    store = ImageStore()
    with Tracker.open(tmp_path, recipe(project="p", mode="offline")) as tracker:
        tracker.step({"step": 0, "reward": 0.5, "note": "x"})
        tracker.rollouts(0, groups(store), store)
        tracker.step({"step": 1, "reward": 0.75})
        tracker.alarm("call_rate", "it is 1", step=1, stops=False)
    assert [row["event"] for row in read_events(tmp_path)] == ["started", "alarm"], "wandb failed"
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert list((tmp_path / "wandb").rglob("*.table.json"))
    staged = [path for path in (tmp_path / "wandb").rglob("staging/*") if path.read_bytes().startswith(b"\x89PNG")]
    assert staged, "the images are not beside the run"


def test_what_looks_like_a_credential_is_masked() -> None:
    given = {"api_key": "s3cret", "nested": [{"hf_token": "s3cret"}], "max_tokens": 5, "top_key": None, "name": "x"}
    shown = redact(given)
    assert "s3cret" not in json.dumps(shown)
    assert shown["max_tokens"] == 5
    assert shown["name"] == "x"
