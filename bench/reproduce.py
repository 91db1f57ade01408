"""Train and evaluate every row of docs/results.md on the tiny profile, and write its tables and pictures.

    python bench/reproduce.py [--only NAME …] [--jobs 2] [--out runs/reproduce]

Each run is `agentvision train` and `agentvision eval` in processes of their own, one thread each, as a user would call
them. A run that is there already is not done again, so an interrupted reproduction goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from page import PAGE, write_section

from agentvision.report.charts import policy_picture, sweep_picture
from agentvision.run_folder import CHECKPOINTS, EXPORT, RESULTS
from agentvision.tracking import read_metrics

SEEDS = (0, 1, 2)
QUESTIONS = 500
EVAL_SEED = 1000
THETAS = (0.15, 0.2, 0.25, 0.3)
RULES = ("paper", "all")
PRICES = (0.1, 1.0)
DEAR = 1.0
"""A price at which no look is worth it by itself."""
LORA = ("model.lora.rank=16", "trainer.lr=5e-4")
RARE = ("data.options.hard_share=0.1", 'data.options.alphabet="47"', "data.options.code_length=1")
"""A world in which one question in ten is hard, and every other guess is right."""


@dataclass(frozen=True)
class Run:
    """One training run and its evaluation."""

    row: str
    recipe: str
    seed: int
    overrides: tuple[str, ...] = ()
    questions: int = QUESTIONS

    @property
    def name(self) -> str:
        return f"{self.row}-seed{self.seed}"


def runs() -> Iterator[Run]:
    """All runs: the table's with three seeds, then the sweeps, shorter and with fewer questions."""
    for seed in SEEDS:
        yield Run("visionthink", "visionthink", seed)
        yield Run("penalty-none", "penalty-none", seed)
        yield Run("qwen-rl", "qwen-rl", seed)
    for seed in SEEDS:
        for rule in RULES:
            yield sweep(f"common-{DEAR}-{rule}", *penalty(rule, DEAR), seed=seed)
    for seed in SEEDS:
        yield Run("penalty-all", "penalty-all", seed)
    for seed in SEEDS:
        yield Run("vllm", "visionthink", seed, ("policy.backend=vllm",))
    yield Run("lora", "visionthink", 0, LORA)
    for row in ("vanilla", "down-sample"):
        yield Run(row, row, 0)
    for theta in THETAS:
        yield sweep(f"theta-{theta}", f"rewards.ratio_penalty.threshold={theta}")
    for price in PRICES:
        for rule in RULES:
            yield sweep(f"rare-{price}-{rule}", *RARE, *penalty(rule, price))
    yield Run("handwriting", "visionthink", 0, ("data.source=handwriting",))
    for row in ("qwen-rl-quarter", "visionthink-general"):
        yield Run(row, row, 0)


def sweep(row: str, *overrides: str, seed: int = 0) -> Run:
    return Run(row, "visionthink", seed, ("trainer.steps=40", *overrides), questions=200)


def penalty(rule: str, price: float) -> tuple[str, ...]:
    return f"rewards.ratio_penalty.rule={rule}", f"rewards.ratio_penalty.amount={price}"


UNTRAINED = ("vanilla", "down-sample")


def execute(run: Run, out: Path) -> None:
    """Train and evaluate one run unless it is there."""
    folder = out / run.name
    if (folder / RESULTS).exists():
        return
    started = time.perf_counter()
    common = [run.recipe, "--profile", "tiny", "--out", str(folder)]
    settings = [f"seed={run.seed}", "trainer.eval_every=0", *run.overrides]
    model: list[str] = []
    if run.row not in UNTRAINED:
        resume = ["--resume"] if (folder / CHECKPOINTS).exists() else []
        if not (folder / EXPORT / "config.json").exists():
            call("train", *common, *resume, *settings, log=out / f"{run.name}.log")
        model = ["--model", str(folder / EXPORT)]
    call(
        "eval",
        *common,
        *model,
        "--n",
        str(run.questions),
        "--seed",
        str(EVAL_SEED),
        *settings,
        log=out / f"{run.name}.log",
    )
    print(f"{run.name}: {time.perf_counter() - started:.0f} s", flush=True)


def call(*arguments: str, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("a") as file:
        file.write(f"$ agentvision {' '.join(arguments)}\n")
        file.flush()
        command = [sys.executable, "-m", "agentvision", *arguments]
        result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if result.returncode:
        raise SystemExit(f"agentvision {' '.join(arguments)} failed with {result.returncode}; see {log}")


# --- the tables -----------------------------------------------------------------------------------------------------


def results_of(row: str, out: Path) -> list[dict]:
    files = sorted(out.glob(f"{row}-seed*/{RESULTS}"))
    return [json.loads(file.read_text()) for file in files]


def average(results: Sequence[dict], key: str) -> float:
    return mean(r[key] for r in results)


def spread(results: Sequence[dict], key: str, digits: int = 3) -> str:
    """Mean over seeds, with the lowest and the highest."""
    values = [r[key] for r in results if r[key] is not None]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


ROWS = (
    ("visionthink", "visionthink (rule `paper`, θ = .2)"),
    ("vllm", "visionthink, trained and asked with `policy.backend=vllm`"),
    ("lora", "visionthink, an adapter of rank 16 trained in place of the weights"),
    ("penalty-none", "penalty-none"),
    ("penalty-all", "penalty-all"),
    ("qwen-rl", "qwen-rl (always the original)"),
    ("qwen-rl-quarter", "qwen-rl-quarter (never the original)"),
    ("visionthink-general", "visionthink-general (one turn, full image)"),
    ("vanilla", "vanilla (warm start, full image)"),
    ("down-sample", "down-sample (warm start, quarter)"),
    ("handwriting", "visionthink on `handwriting` (real scans)"),
)
REGIME = (
    ("visionthink", "half are hard; −0.1 by rule `paper`"),
    ("penalty-all", "half are hard; −0.1 by rule `all`"),
    *((f"common-{DEAR}-{rule}", f"half are hard; −{DEAR} by rule `{rule}`") for rule in RULES),
    *(
        (f"rare-{price}-{rule}", f"1 in 10 is hard, and guessable; −{price} by rule `{rule}`")
        for price in PRICES
        for rule in RULES
    ),
)


def main_table(out: Path, rows: Sequence[tuple[str, str]] = ROWS) -> str:
    lines = [
        "| tiny recipe | seeds | call rate, hard | call rate, easy | call rate, all | accuracy | visual tokens,"
        " additive | replacement | full |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, label in rows:
        results = results_of(row, out)
        if results:
            cells = [spread(results, k) for k in ("call_rate_hard", "call_rate_easy", "call_rate", "accuracy")]
            tokens = [spread(results, f"visual_tokens_{k}", 1) for k in ("additive", "replacement", "full")]
            lines.append(f"| {label} | {len(results)} | {' | '.join(cells + tokens)} |")
    return "\n".join(lines)


def warm_start_table(out: Path) -> str:
    lines = ["| recipe | sees | accuracy, large type and shapes | accuracy, small type |", "|---|---|---|---|"]
    for row, sees in (("down-sample", "a quarter of the tokens"), ("vanilla", "the original")):
        for r in results_of(row, out):
            cells = []
            for part in ("accuracy_easy", "accuracy_hard"):
                low, high = r[f"{part}_ci"]
                cells.append(f"{r[part]:.3f} ({low:.3f}–{high:.3f})")
            lines.append(f"| `{row}` | {sees} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio_line(out: Path) -> str:
    learned, always = results_of("visionthink", out), results_of("qwen-rl", out)
    called = results_of("penalty-none", out)
    if not learned or not always or not called:
        return ""
    share = average(learned, "accuracy") / average(always, "accuracy")
    share_called = average(learned, "accuracy") / average(called, "accuracy")
    saved = 1 - average(learned, "visual_tokens_additive") / average(always, "visual_tokens_full")
    return (
        f"Accuracy of visionthink against always-original: {share:.3f} of qwen-rl's, {share_called:.3f} of penalty-none's"
        f" (which calls on {average(called, 'call_rate'):.3f} of all questions). Visual tokens, additive:"
        f" {saved:.1%} fewer than the full image's."
    )


def theta_table(out: Path) -> str:
    lines = ["| θ | call rate at the end | call rate, hard | call rate, easy | accuracy |", "|---|---|---|---|---|"]
    for theta in THETAS:
        for r in results_of(f"theta-{theta}", out):
            cells = " | ".join(f"{r[k]:.3f}" for k in ("call_rate", "call_rate_hard", "call_rate_easy", "accuracy"))
            lines.append(f"| {theta} | {cells} |")
    return "\n".join(lines)


def write_page(out: Path) -> None:
    """Tables and pictures from whatever runs are there."""
    write_section("reproduce", "\n\n".join(filter(None, [main_table(out), ratio_line(out)])))
    write_section("warm-start", warm_start_table(out))
    write_section("regime", main_table(out, REGIME))
    write_section("theta", theta_table(out))
    docs = PAGE.parent
    if (out / "visionthink-seed0").exists():
        policy_picture(read_metrics(out / "visionthink-seed0"), docs / "policy.svg")
    curves = {
        f"θ = {theta}": read_metrics(out / f"theta-{theta}-seed0")
        for theta in THETAS
        if (out / f"theta-{theta}-seed0").exists()
    }
    if (out / "penalty-none-seed0").exists():
        curves["no penalty"] = read_metrics(out / "penalty-none-seed0")
    if curves:
        sweep_picture(curves, docs / "theta.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=(), help="rows to do; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    arguments = parser.parse_args()
    chosen = [run for run in runs() if not arguments.only or run.row in arguments.only]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for _ in pool.map(lambda run: execute(run, arguments.out), chosen):
            pass
    write_page(arguments.out)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
