"""`agentvision train`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from agentvision.cli._options import Flag


def train(
    recipe: str,
    *overrides: str,
    profile: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    quiet: Flag = False,
) -> None:
    """Train a recipe's policy.

    Ctrl-C and SIGTERM end the run with a whole checkpoint; --resume continues it. A run's folder is never overwritten.

    Parameters
    ----------
    recipe
        Name of a recipe that ships with the package, or a path.
    overrides
        Values of the recipe to change, `key.path=value`: `seed=3`, `trainer.steps=10`, `rewards.format.weight=0`.
    profile
        A profile of the recipe, such as `tiny`.
    out
        Folder of the run; `runs/NAME` by default.
    resume
        Continue the run in `out` from its newest whole checkpoint.
    quiet
        Say nothing while training.
    """
    from agentvision.recipe import load_recipe

    loaded = load_recipe(recipe, profile=profile, overrides=overrides)  # mistakes first: the next line imports torch
    from agentvision.engine.ranks import rank, ranks
    from agentvision.run_folder import RESOLVED
    from agentvision.train.run import train as run

    result = run(loaded, out=out, resume=resume, quiet=quiet)
    if result.interrupted is not None:
        if not (result.out / RESOLVED).is_file():
            print("interrupted before the first step; nothing was written", file=sys.stderr)
        elif ranks() > 1:
            if rank() == 0 and not quiet:
                print("continue with the same launch and --resume", file=sys.stderr)
        elif not quiet:
            command = ["agentvision", "train", recipe, *overrides]
            command += ["--profile", profile] if profile is not None else []
            command += ["--out", str(result.out), "--resume"]
            print(f"continue with: {shlex.join(command)}", file=sys.stderr)
        sys.exit(128 + result.interrupted.value)
    if not quiet:
        print(result.summary)
