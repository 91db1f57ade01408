"""Overlap on against off: the tiny recipe with a judge that takes half a second, one core each for rollouts and updates.

`python bench/rollout_overlap.py` prints the table; `measure()` and `table()` are for reports. Each run is a process of its
own, because the number of threads is. Off, a step's parts take turns, so each is timed alone: the rollout with its judge,
and the update. On (`trainer.max_staleness=1`, truncated weights for tokens), a step should take as long as the longer of
them: `overlap_ratio` is the step's time over that. The policies at the end are compared over seeds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentvision.rewards.accuracy import Accuracy
from agentvision.types import Score, Trajectory

JUDGE_S = 0.5
TIMED_STEPS, WARM_STEPS = 14, 3
POLICY_STEPS, SEEDS = 60, (0, 1)
SIDES = {"off": (), "on": ("trainer.max_staleness=1", "algorithm.correction.kind=truncated")}
TARGET = 1.15
COMPARED = ("accuracy", "call_rate_hard", "call_rate_easy", "visual_tokens_additive", "reward")


@dataclass(frozen=True)
class SlowAccuracy(Accuracy):
    """Exact match by a judge that is far away."""

    async def __call__(self, trajectory: Trajectory) -> Score:
        await asyncio.sleep(JUDGE_S)
        return await super().__call__(trajectory)


def run(side: str, *, seed: int, steps: int, out: Path) -> list[dict[str, Any]]:
    """Train in this process; its metrics. The last step's hold an evaluation on 300 held-out questions."""
    import torch

    from agentvision import load_recipe
    from agentvision.tracking import read_metrics
    from agentvision.train.run import train

    torch.set_num_threads(1)
    rewards = [
        {f"{Path(__file__).resolve()}:SlowAccuracy": {"weight": 1.0}},
        {"format": {"weight": 0.5}},
        {"ratio_penalty": {"rule": "paper", "threshold": 0.2, "amount": 0.1}},
    ]
    overrides = (
        f"rewards={json.dumps(rewards)}", f"seed={seed}", f"trainer.steps={steps}", "trainer.save_every=0",
        f"trainer.eval_every={steps}", "trainer.eval_n=300", "tracking.trajectories_every=0", *SIDES[side],
    )  # fmt: skip
    train(load_recipe("visionthink", profile="tiny", overrides=overrides), out=out, quiet=True)
    return read_metrics(out)


def measure(*, timed_steps: int = TIMED_STEPS, policy_steps: int = POLICY_STEPS) -> dict[str, Any]:
    """`overlap_ratio` and what it is made of; the policies at the end of longer runs by side and seed (0 steps: none)."""
    off, on = (_rows(side, 0, timed_steps)[WARM_STEPS:-1] for side in ("off", "on"))
    rollout_s, update_s = _median(off, "time_wait_s"), _median(off, "time_update_s")
    step_s = _median(on, "time_step_s")
    results: dict[str, Any] = {
        "judge_s": JUDGE_S,
        "rollout_s": rollout_s,
        "update_s": update_s,
        "step_off_s": _median(off, "time_step_s"),
        "step_on_s": step_s,
        "overlap_ratio": step_s / max(rollout_s, update_s),
        "speedup": _median(off, "time_step_s") / step_s,
        "staleness_mean": _mean(on, "staleness_mean"),
        "importance_ess": _mean(on, "importance_ess"),
        "policy_steps": policy_steps,
        "policies": {},
    }
    for side in SIDES if policy_steps else ():
        last = [_rows(side, seed, policy_steps)[-1] for seed in SEEDS]
        results["policies"][side] = {name: [row[f"eval/{name}"] for row in last] for name in COMPARED}
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"| a step with a judge of {results['judge_s']} s, a core each for rollouts and updates | s |",
        "|---|---|",
        f"| rollout and judge alone | {results['rollout_s']:.2f} |",
        f"| update alone | {results['update_s']:.2f} |",
        f"| step, taking turns | {results['step_off_s']:.2f} |",
        f"| step, overlapping | {results['step_on_s']:.2f} |",
        "",
        f"Overlapping, a step takes {results['overlap_ratio']:.2f} × the longer of its parts (target {TARGET}), and is "
        f"{results['speedup']:.2f} × as fast as taking turns; tokens are {results['staleness_mean']:.2f} steps old on "
        f"average, and their effective sample size is {results['importance_ess']:.3f}.",
    ]
    if results["policies"]:
        lines += [
            "",
            f"| after {results['policy_steps']} steps, seeds {', '.join(map(str, SEEDS))} | off | on |",
            "|---|---|---|",
        ]
        for name in COMPARED:
            cells = (", ".join(f"{value:.3f}" for value in results["policies"][side][name]) for side in SIDES)
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    """Over the steps that had a signal."""
    return statistics.fmean(row[name] for row in rows if row[name] is not None)


def _rows(side: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """The metrics of one run, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "run", side, str(seed), str(steps), f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        side, seed, steps, out = sys.argv[2:]
        print(json.dumps(run(side, seed=int(seed), steps=int(steps), out=Path(out))))
    else:
        print(table(measure()))


if __name__ == "__main__":
    main()
