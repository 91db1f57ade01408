"""All that docs/results.md says of rollouts, and bench/results/rollout.json: `make bench-rollout`.

    python bench/rollout.py [--only framework exact engine adapter overlap sync]

Each part is a module of its own with `measure` and `table`, and a process of its own; a part that is not run keeps its figures.
Figures lie flat in the file, so that one is found by its name: a name that two parts give is refused.
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
COUNTS = ("episodes", "rounds", "steps")
"""How much each part measured is its own affair, and not stored."""
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
        figures = {name: value for name, value in measured.items() if name not in COUNTS}
        part_of = results.setdefault("part_of", {})
        if clash := [f"{name} ({part_of[name]})" for name in figures if part_of.get(name, part) != part]:
            sys.exit(f"{part} has figures of another part's name: {', '.join(clash)}; rename them")
        part_of |= dict.fromkeys(figures, part)
        results |= figures
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        text = import_module(f"rollout_{part}").table(measured)
        write_section(f"rollout-{part}", text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
