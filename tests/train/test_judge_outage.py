"""Training whose judge goes away: it stops soon, says why, and goes on from where it was when the judge is back."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentvision.chat import Chat
from agentvision.errors import TrainingStopped
from agentvision.recipe import load_recipe
from agentvision.tracking import read_events, read_metrics
from agentvision.train import train
from tests.judging import same_text
from tests.openai_server import OpenAIServer


def test_a_total_outage_stops_the_run_with_a_checkpoint_that_loads(tmp_path):
    """The server takes requests and never answers, the slowest way to be gone; in seconds, by settings that are a
    quarter of the defaults (`patience_s` 30, `call_timeout_s` 20)."""
    out = tmp_path / "run"
    with OpenAIServer() as server:  # litellm imports half of itself during the first call
        asyncio.run(Chat("openai/m", api_base=server.url, timeout_s=120).ask([{"role": "user", "content": "?"}]))
    with OpenAIServer(answer=same_text) as server:
        judge = {"model": "openai/m", "api_base": server.url, "rules": False, "cache": None}
        judge |= {"patience_s": 8.0, "call_timeout_s": 5.0, "audit_share": 0.0}
        recipe = load_recipe(
            "visionthink",
            profile="tiny",
            overrides={
                "model.device": "cpu",
                "rewards": [{"judge": judge}, {"format": {"weight": 0.5}}, {"ratio_penalty": {}}],
                "algorithm.group_size": 2,
                "algorithm.resample.max_rounds": 0,
                "trainer.steps": 2,
                "trainer.prompts_per_step": 2,
                "trainer.save_every": 1,
                "trainer.eval_every": 0,
                "trainer.max_invalid_share": 0.4,
                "evaluation.n": 1,
            },
        )
        began: list[float] = []

        def fault(request):
            if not began and (out / "metrics.jsonl").exists() and read_metrics(out):  # the first step is done
                began.append(request.began)
            return "hang" if began else None

        server.fault = fault
        with pytest.raises(TrainingStopped, match=r"max_invalid_share.*judge: .*checkpoint is .*step-000001"):
            train(recipe, out=out, quiet=True)
        assert time.monotonic() - began[0] < 60
        assert "stopped" in [event["event"] for event in read_events(out)]
        server.fault = lambda request: None
        assert train(recipe, out=out, resume=True, quiet=True).steps == 2
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["judge/judged"] and row["judge/share_large"] + row["judge/share_prefilter"] == 1 for row in rows)
