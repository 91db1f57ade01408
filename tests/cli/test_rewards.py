"""`agentvision rewards` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentvision import plugins
from agentvision.cli import main
from agentvision.images import ImageStore
from agentvision.journal import Journal
from agentvision.types import ParsedTurn, Sample, StopReason, ToolCall, ToolRecord, Trajectory, Turn

OWN = '''
from agentvision import Group, Trajectory, reward

@reward
def brief(trajectory: Trajectory, *, limit: int, unit: str = "characters") -> bool:
    """Whether an answer is short."""
    return len(trajectory.answer) <= limit

def crash(trajectory):
    raise RuntimeError("out of luck")
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def rollout(k: int, *, looked: bool, correct: bool, name: str = "s1") -> Trajectory:
    call = ToolCall("crop", {})
    turns = (Turn("call", ParsedTurn(call=call), ToolRecord(call, views=(2,))),) if looked else ()
    answer = "blue" if correct else "red"
    return Trajectory(
        Sample(name, "Which colour?", answer="blue"), (*turns, Turn("say", ParsedTurn(answer=answer))),
        (), (), StopReason.ANSWERED, answer=answer, correct=correct, rollout=k,
    )  # fmt: skip


@pytest.fixture
def recorded(here: Path) -> Path:
    """Two steps; in the second, s1 has r = 1/2 and of s2 nobody is right."""
    with Journal(here / "run") as journal:
        journal.append([rollout(k, looked=True, correct=True) for k in range(2)], step=1, store=ImageStore())
        group = [rollout(0, looked=True, correct=True), rollout(1, looked=False, correct=True)]
        wrong = [rollout(k, looked=bool(k), correct=False, name="s2") for k in range(2)]
        journal.append([*group, *wrong], step=2, store=ImageStore())
    return here / "run"


def run(*arguments: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["rewards", *arguments])
        raise SystemExit(0)
    return int(ended.value.code or 0)


def test_list_shows_what_each_scores_and_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = plugins.discover
    monkeypatch.setattr(plugins, "discover", lambda kind: plugins.Discovery(real(kind).found, {"bad": "OSError: gone"}))
    assert run("list") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("ratio_penalty group −`amount`") for line in lines)
    assert any(line.startswith("accuracy trajectory Grade") for line in lines)
    assert "rule: paper, threshold: 0.2, amount: 0.1" in lines
    assert "max_tokens (required), cache_tokens: null" in lines
    assert lines[-1] == "broken: bad: OSError: gone"


@pytest.mark.parametrize(
    ("arguments", "printed", "code"),
    [
        (("accuracy", "--truth", "3 m", "--answer", "300 cm"), "1", 0),
        (("accuracy", "--truth", "3 m", "--answer", "300 cm", "rule=exact"), "0", 0),
        (("accuracy", "--truth", "40", "--answer", "41", "rule=[exact, number]", "tolerance=0.05"), "1", 0),
        (("accuracy", "--truth", "B", "--answer", "two", "--question", "How many?\nA. one\nB. two"), "1", 0),
        (("accuracy", "--answer", "41"), "invalid  (sample 'command line' has no ground truth)", 1),
        (("./own.py:brief", "--answer", "blue", "limit=4"), "1", 0),
        (("./own.py:crash", "--answer", "blue"), "invalid  (raised RuntimeError: out of luck (own.py:10))", 1),
        (("format", "--answer", "a=b"), "1", 0),
    ],
)
def test_try_scores_one_answer(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], printed: str, code: int
) -> None:
    assert run("try", *arguments) == code
    assert capsys.readouterr().out == f"{printed}\n"


def test_try_scores_the_groups_of_a_run_with_the_verdicts_of_the_run(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("try", "ratio_penalty", "run", "threshold=0.5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 2: ratio_penalty of 2 groups"
    assert lines[2] == "s1  'Which colour?'  truth 'blue'"
    assert lines[3].split() == ["'blue'", "right,", "looked", "-0.1"] and lines[4].split() == ["'blue'", "right", "0"]
    assert lines[-1] == "mean -0.025 (-0.1 to 0), 0 of 4 invalid; scores differ within 1 groups"


def test_try_takes_the_step_that_is_named_and_shows_no_more_than_asked(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("try", "ratio_penalty", "run/trajectories.jsonl", "--step", "1", "rule=all", "--groups", "0") == 0
    assert capsys.readouterr().out.splitlines() == [
        "step 1: ratio_penalty of 1 groups",
        "",
        "mean -0.1 (-0.1 to -0.1), 0 of 2 invalid; scores differ within 0 groups",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acuracy", "--answer", "x"), "Did you mean 'accuracy'"),
        (("accuracy",), "give --answer"),
        (("accuracy", "ruel=exact", "--answer", "x"), "accuracy.ruel: there is no setting 'ruel'. Did you mean"),
        (("accuracy", "rule=[exact", "--answer", "x"), "'rule=[exact' is not name=value: this is not YAML"),
        (("accuracy", "=exact", "--answer", "x"), "the name is missing"),
        (("./own.py:brief", "--answer", "x"), "the setting 'limit' is missing"),
        (("ratio_penalty", "--answer", "x"), "scores groups: name the folder of a run"),
        (("ratio_penalty", "nowhere"), "nowhere"),
        (("ratio_penalty", "own.py"), "name the folder of a run or evaluation"),
        (("ratio_penalty", "run", "--step", "7"), "no trajectory of step 7 stands there; it has steps 1 to 2"),
        (("ratio_penalty", "run", "run"), "one run at a time"),
        (("ratio_penalty", "run", "--answer", "x"), "not both"),
        (("accuracy", "--answer", "x", "--step", "1"), "no run is named"),
    ],
)
def test_each_mistake_is_one_clear_line(
    recorded: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("try", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
