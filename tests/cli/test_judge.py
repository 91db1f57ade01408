"""`agentvision judge check` against servers whose honesty is known."""

import json

import pytest

from agentvision.cli import main
from agentvision.rewards.judge.audit import audit_cases
from agentvision.rewards.judge.check import some_cases
from tests.judging import asked
from tests.openai_server import OpenAIServer


def knows(request):
    """The labels by heart, as far as truth and answer reach the server as they were written."""
    return f"Score: {LABELS.get(asked(request), 0)}"


LABELS = {(case.truth, case.answer): case.label for case in audit_cases()}


def check(*arguments):
    """The exit code."""
    with pytest.raises(SystemExit) as raised:
        main(["judge", "check", "--model", "openai/m", *arguments])
    return raised.value.code


def test_a_judge_that_says_yes_to_everything_is_found_out(capsys):
    with OpenAIServer(answer=lambda request: "Score: 1") as server:
        assert check("--api-base", server.url, "--json", "--n", "60", "--concurrency", "4", "prices=[1, 2]") == 0
        assert server.most_in_flight <= 4
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 60 and found["false_negative_rate"] == found["invalid_rate"] == 0
    assert found["false_positive_rate"] > 0.9 and len(found["mistakes"]) > 15, "only master keys were not asked about"
    assert found["cost_usd"] == pytest.approx(found["counts"]["replies"] * (10 * 1 + 3 * 2) / 1e6)
    assert 0 < found["latency_p50_s"] <= found["latency_p95_s"]
    assert len(found["families"]) > 10


def test_a_good_judge_is_told_from_a_bad_one(capsys):
    with OpenAIServer(answer=knows) as server:
        assert check("--api-base", server.url, "--n", "40") == 0
    shown = capsys.readouterr().out
    assert "paraphrase" in shown and "the model's price is not known" in shown
    (accuracy,) = [line for line in shown.splitlines() if line.startswith("accuracy")]
    assert float(accuracy.split()[1]) > 80


def test_replies_without_a_verdict_are_no_mistakes(capsys):
    with OpenAIServer(answer=lambda request: "It is right, I think.") as server:
        assert check("--api-base", server.url, "--n", "10", "--json", "reasks=0") == 0
        asked_about = len(server.requests) - 1  # the first is to see whether anybody is there
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["invalid/unparsable"] == asked_about and found["mistakes"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-base", "http://127.0.0.1:9/v1", "attempts=1"], "127.0.0.1:9"),
        (["--api-key-env", "NO_SUCH_KEY"], "set NO_SUCH_KEY"),
        (["--template", "binry"], "template"),
        (["call_timeout=3"], "Did you mean 'call_timeout_s'"),
        (["call_timeout_s"], "is not name=value"),
        (["--n", "0"], "n"),
    ],
)
def test_what_cannot_work_is_one_clear_line(capsys, arguments, message):
    assert check(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert "Traceback" not in captured.err


def test_a_part_of_the_cases_is_of_all_families():
    families = {case.family for case in audit_cases()}
    assert {case.family for case in some_cases(100)} == families
    assert len(some_cases(100)) == 100 and some_cases(10**6) is audit_cases()
