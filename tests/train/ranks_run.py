"""`agentvision train` as one rank of a launch, with something that goes wrong: `-m tests.train.ranks_run FAULT train …`.

At each checkpoint the rank writes what weights it has, and which its policy was proven to sample with.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agentvision.cli import main
from agentvision.engine.digest import rows_digest
from agentvision.engine.endpoint import Endpoint
from agentvision.engine.in_process import InProcessEngine
from agentvision.engine.types import SyncError
from agentvision.train.grpo import GRPO

RANK = int(os.environ["RANK"])
LAST = 3
"""The step that goes wrong."""


def tell(run: GRPO) -> None:
    policy: Any = run.learner.policy
    weights = {"rows": str(rows_digest(run.learner.model.parameters())), "version": policy.version}
    (run.checkpoints.path(run.step).parent.parent / f"rank{RANK}-step{run.step}.json").write_text(json.dumps(weights))


def arm(fault: str) -> None:
    save, update = GRPO.save, GRPO.update

    def told(run: GRPO) -> Path:
        path = save(run)
        tell(run)
        return path

    GRPO.save = told
    kind: Any = {"engine of rank 1": InProcessEngine, "servers": Endpoint}.get(fault)
    if kind is not None and (kind is InProcessEngine) == RANK:
        finish = kind.finish_weight_update

        async def broken(engine: Any, version: int) -> None:
            await finish(engine, version)
            if version == LAST:
                raise SyncError("it does not take them")

        kind.finish_weight_update = broken

    def killed(run: GRPO, *arguments: Any) -> Any:
        if run.step + 1 == LAST:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(run, *arguments)

    if fault == "rank 1 is killed" and RANK == 1:
        GRPO.update = killed

    roll = GRPO.roll

    async def interrupted(run: GRPO, step: int) -> Any:
        """The other rank has finished its rollouts by then, and waits for this one."""
        if step + 1 == LAST:
            await asyncio.sleep(3)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
        return await roll(run, step)

    if fault == f"signal to rank {RANK}":
        GRPO.roll = interrupted


if __name__ == "__main__":
    arm(sys.argv.pop(1))
    main()
