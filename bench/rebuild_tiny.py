"""Rebuild the tiny model and compare it with the one that ships: weights, what each reads, what GRPO makes of each.

    python bench/rebuild_tiny.py [--out runs/tiny]

Stages that are there already are not done again. Writes its section of docs/results.md, and fails when the rebuilt model's
scores are not those of the shipped one within both 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from page import PAGE, write_section
from reproduce import EVAL_SEED, QUESTIONS, call
from safetensors.torch import load_file

from agentvision.build import model_path

SHIPPED, REBUILT = "shipped", "rebuilt"
PACKAGED = "package://tiny-vlm"
READINGS = (
    ("down-sample", "accuracy_easy", "a quarter of the tokens: large type and shapes"),
    ("down-sample", "accuracy_hard", "a quarter of the tokens: small type"),
    ("vanilla", "accuracy_easy", "the original: large type and shapes"),
    ("vanilla", "accuracy_hard", "the original: small type"),
    ("before", "call_rate_easy", "before GRPO: call rate, easy"),
    ("before", "call_rate_hard", "before GRPO: call rate, hard"),
    ("visionthink", "call_rate_easy", "after GRPO: call rate, easy"),
    ("visionthink", "call_rate_hard", "after GRPO: call rate, hard"),
    ("visionthink", "accuracy", "after GRPO: accuracy"),
)
"""Which evaluation, which of its numbers, and what that says."""


def evaluate(recipe: str, model: str, out: Path, *overrides: str) -> dict:
    """`agentvision eval` of a model, once."""
    if not (out / "results.json").exists():
        asked = ["--n", str(QUESTIONS), "--seed", str(EVAL_SEED)]
        where = ["--profile", "tiny", "--model", model, "--out", str(out)]
        call("eval", recipe, *where, *asked, *overrides, log=out.parent / f"{out.name}.log")
    return json.loads((out / "results.json").read_text())


def train(model: str, out: Path) -> str:
    """The visionthink recipe from a model's weights, once; the folder of what it learned."""
    if not (out / "export" / "config.json").exists():
        resume = ["--resume"] if (out / "checkpoints").exists() else []
        settings = [f"model.path={model}", "trainer.eval_every=0"]
        call(
            "train",
            "visionthink",
            "--profile",
            "tiny",
            "--out",
            str(out),
            *resume,
            *settings,
            log=out.parent / f"{out.name}.log",
        )
    return str(out / "export")


def scores(model: str, out: Path) -> dict[str, dict]:
    """All evaluations of one model."""
    return {
        "down-sample": evaluate("down-sample", model, out / "down-sample"),
        "vanilla": evaluate("vanilla", model, out / "vanilla"),
        "before": evaluate("visionthink", model, out / "before", "evaluation.temperature=1.0"),
        "visionthink": evaluate("visionthink", train(model, out / "grpo"), out / "visionthink"),
    }


def largest_difference(one: Path, other: Path) -> float:
    """Of any weight; raises `KeyError` when the two hold other tensors."""
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max(float((left[name].float() - right[name].float()).abs().max()) for name in left.keys() | right.keys())


def table(all_scores: dict[str, dict[str, dict]]) -> tuple[str, list[str]]:
    """The comparison, and the readings in which the two models differ by more than chance."""
    lines = ["| reading | shipped | rebuilt |", "|---|---|---|"]
    apart = []
    for evaluation, key, label in READINGS:
        ours = [all_scores[model][evaluation] for model in (SHIPPED, REBUILT)]
        intervals = [r[f"{key}_ci"] for r in ours]
        cells = [f"{r[key]:.3f} ({low:.3f}–{high:.3f})" for r, (low, high) in zip(ours, intervals, strict=True)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
        if max(low for low, _ in intervals) > min(high for _, high in intervals):
            apart.append(label)
    return "\n".join(lines), apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    out: Path = parser.parse_args().out
    rebuilt = out / "checkpoint"
    if not (rebuilt / "model.safetensors").exists():
        subprocess.run([sys.executable, "-m", "agentvision.tiny", "--out", str(rebuilt)], check=True)
    models = {SHIPPED: model_path(PACKAGED), REBUILT: str(rebuilt)}
    text, apart = table({name: scores(model, out / name) for name, model in models.items()})
    gap = largest_difference(Path(models[SHIPPED]), rebuilt)
    write_section("rebuilt", f"{text}\n\nThe largest difference of any weight is {gap:.2g}.")
    print(f"written: {PAGE}")
    if apart:
        raise SystemExit(f"the rebuilt model differs from the shipped one: {'; '.join(apart)}")


if __name__ == "__main__":
    main()
