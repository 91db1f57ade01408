"""`agentvision doctor`: a run's self-test, before it costs anything."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Annotated

import cyclopts

from agentvision.cli._options import AsJson
from agentvision.cli._terminal import printable


def doctor(
    recipe: str,
    *overrides: str,
    profile: Annotated[str | None, cyclopts.Parameter(name="--profile")] = None,
    json_: AsJson = False,
) -> None:
    """Load what a recipe names, roll out a few episodes, and check what training will trust.

    Token ids of engine and ledger, log-probs of engine and trainer, weights and caches after a sync, the chat template,
    and the memory of the largest batch. The exit code is 1 when something is not in order.

    Parameters
    ----------
    recipe
        Its name, or the path of a file.
    overrides
        Values to change, as key.path=value.
    profile
        The profile to lay over it.
    json_
        Print JSON.
    """
    from agentvision._workers import run_sync
    from agentvision.doctor import examine
    from agentvision.recipe import load_recipe

    loaded = load_recipe(recipe, profile=profile, overrides=overrides)

    def tell(name: str) -> None:
        if not json_ and sys.stderr.isatty():
            print(f"\r\033[K{name} …", end="", file=sys.stderr, flush=True)

    diagnosis = run_sync(lambda: examine(loaded, on_check=tell))
    if json_:
        findings = {f.name: {"ok": f.ok, "says": f.says, **_json_numbers(f.numbers)} for f in diagnosis.findings}
        print(json.dumps({"healthy": diagnosis.healthy, "seconds": diagnosis.seconds, "findings": findings}, indent=2))
    else:
        tell("")
        marks = {True: "ok", False: "FAILED", None: "-"}
        for finding in diagnosis.findings:
            print(f"{marks[finding.ok]:<7} {finding.name:<10} {printable(finding.says)}")
        print(f"{'in order' if diagnosis.healthy else 'not in order'}, {diagnosis.seconds:.0f} s")
    if not diagnosis.healthy:
        sys.exit(1)


def _json_numbers(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """NaN and infinity as null: a module that computes them is a finding, and JSON has neither."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
