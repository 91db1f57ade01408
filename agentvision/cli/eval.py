"""`agentvision eval`."""

from __future__ import annotations

from pathlib import Path

from agentvision.cli._options import Count, Flag, Seed
from agentvision.cli._terminal import progress


def evaluate(
    recipe: str,
    *overrides: str,
    profile: str | None = None,
    model: str | None = None,
    n: Count = None,
    seed: Seed = None,
    out: Path | None = None,
    quiet: Flag = False,
) -> None:
    """Evaluate a model on a recipe's held-out questions, with the prompts, resolutions and tools of its training.

    Prints the numbers; with --out, writes results.json and every trajectory there. Results are never overwritten.

    Parameters
    ----------
    recipe
        Name of a recipe that ships with the package, or a path.
    overrides
        Values of the recipe to change, `key.path=value`: `evaluation.temperature=1`, `env.first_view.scale=1`.
    profile
        A profile of the recipe, such as `tiny`.
    model
        A folder or hub id to evaluate in place of the recipe's model, such as `runs/demo/export`, or a server's name of one.
    n
        Questions; by default the recipe's `evaluation.n`.
    seed
        Picks the questions of a source that makes them, and seeds sampling; by default the recipe's.
    out
        Folder for results.json and the trajectories.
    quiet
        Print nothing.
    """
    from agentvision.recipe import load_recipe

    loaded = load_recipe(recipe, profile=profile, overrides=overrides)
    from agentvision.evaluate.run import evaluate as run

    with progress(quiet=quiet) as bar:
        task = bar.add_task(f"{loaded.name}: questions", total=None)
        result = run(
            loaded,
            model=model,
            n=n,
            seed=seed,
            out=out,
            on_done=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if quiet:
        return
    from agentvision.evaluate.compare import Result, labelled_rows

    for row in labelled_rows([Result(loaded.name, result.metrics)]):
        ((value, interval),) = row.cells
        print(f"{row.label:<40} {value:>9}" + (f"  ({interval})" if interval else ""))
    stops = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in result.metrics["stop"].items())
    print(f"{'episodes ended':<40} {stops}")
    spent = result.metrics["usage"]
    if "cost_usd" in spent:
        unpriced = f" and {spent['unpriced']:,.0f} turns of no known price" if "unpriced" in spent else ""
        print(f"{'US dollars':<40} {spent['cost_usd']:>9.4f}{unpriced}")
    if {"prompt_tokens", "completion_tokens"} <= spent.keys():
        print(f"{'tokens sent and received':<40} {spent['prompt_tokens']:,.0f}, {spent['completion_tokens']:,.0f}")
    if result.metrics["invalid"]:
        print(f"{'without a verdict':<40} {result.metrics['invalid']:>9}")
    if result.path is not None:
        print(result.path)
