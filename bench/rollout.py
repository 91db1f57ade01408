"""All that docs/results.md says of rollouts, and bench/results/rollout.json: `make bench-rollout`.

    python bench/rollout.py [--only framework exact engine adapter overlap sync]

Each part is a module of its own with `measure` and `table`, and a process of its own; a part that is not run keeps its figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from page import write_section

PARTS = ("framework", "exact", "engine", "adapter", "overlap", "sync")
RESULTS = Path(__file__).resolve().parent / "results" / "rollout.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(import_module(f"rollout_{arguments.part}").measure()))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for part in arguments.only:
        print(f"{part} …", flush=True)
        done = subprocess.run(
            [sys.executable, __file__, "--part", part], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{part} failed")
        measured = json.loads(done.stdout.splitlines()[-1])
        # Flat, so that a figure is found by its name; counts of one part do not hide another's.
        results |= {name: value for name, value in measured.items() if name not in ("rounds", "steps")}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        text = import_module(f"rollout_{part}").table(measured)
        write_section(f"rollout-{part}", text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
