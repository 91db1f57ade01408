"""`agentvision report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number


def report(
    run_dir: Path,
    *,
    out: Path | None = None,
    trajectories: Annotated[int, Parameter(validator=Number(gte=0))] = 48,
) -> None:
    """Write the report of a run or an evaluation: one page that opens anywhere, without a network.

    Parameters
    ----------
    run_dir
        Folder of a run, of an evaluation, or of `agentvision run --out`.
    out
        Where to write; by default report.html in that folder, in place of an earlier one.
    trajectories
        How many to show at most.
    """
    from agentvision.report import write_report

    print(write_report(run_dir, out=out, most=trajectories))
