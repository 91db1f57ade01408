"""`python -m agentvision.tiny [--out DIR]`: rebuild the tiny model that ships with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from agentvision.tiny.build import build_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m agentvision.tiny", description="Rebuild the tiny model.")
    default = Path(__file__).parent / "checkpoint"
    parser.add_argument("--out", type=Path, default=default, help="folder to write (default: the packaged one)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build_checkpoint(options.out, seed=options.seed)


if __name__ == "__main__":
    main()
