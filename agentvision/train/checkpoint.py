"""Checkpoints that survive being killed at any moment.

A checkpoint is a folder `step-000012/`: `model/` (a plain Hugging Face folder, or an adapter's), `optimizer.pt` (tensors only,
read with `weights_only`), `state.json` (where the run stands) and `checksums.json` over all of them. It is written beside,
synced to disk and renamed, so under its final name it is always whole; older ones are pruned only after that. Reading starts
with the newest; one whose checksums fail is renamed `….corrupt`, and the one before is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentvision.errors import AgentVisionError, RunError

log = logging.getLogger(__name__)

STATE = "state.json"
CHECKSUMS = "checksums.json"
MODEL = "model"
_NAME = re.compile(r"step-(\d{6,})")
_PART = ".part"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One whole checkpoint on disk. `step` is the number of steps done; `state` is what was given to `save`."""

    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def model(self) -> Path:
        return self.path / MODEL


class Checkpoints:
    """The checkpoints of one run, in `directory`. One process writes; any may read."""

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of this step stands, or would stand."""
        return self.directory / f"step-{step:06d}"

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        """Write a checkpoint: `write(folder)` puts the large files there, `state` is JSON.

        Raises:
            RunError: the disk refuses (full, read-only). What stood there before is untouched.
        """
        final = self.path(step)
        part = final.with_suffix(_PART)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            write(part)
            (part / STATE).write_text(json.dumps(dict(state), indent=1, sort_keys=True))
            sums = {str(path.relative_to(part)): _sha256(path) for path in _files(part)}
            (part / CHECKSUMS).write_text(json.dumps(sums, indent=1))
            for path in (*_files(part), *(p for p in part.rglob("*") if p.is_dir()), part):
                _sync(path)
            replace_folder(part, final)
            _sync(self.directory)
        except Exception as error:  # torch and safetensors report a full disk by errors of their own
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, AgentVisionError):
                raise
            newest = max(self._steps(), default=None)
            kept = (
                f"the last whole checkpoint is {self.path(newest).name}"
                if newest is not None
                else "there is none before it"
            )
            raise RunError(f"{final}: cannot save a checkpoint: {error}; {kept}; free space, then --resume") from error
        self._prune()
        return final

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None where there is none. Corrupt ones are set aside under another name."""
        for step in sorted(self._steps(), reverse=True):
            path = self.path(step)
            problem = _problem(path)
            if problem is None:
                return Checkpoint(path, step, json.loads((path / STATE).read_text()))
            aside = _free_name(path, ".corrupt")
            log.warning("%s is damaged (%s): set aside as %s", path, problem, aside.name)
            path.rename(aside)
        return None

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        for aside in self.directory.glob("step-*.old"):  # killed between the two renames of `save`
            if not aside.with_suffix("").exists():
                aside.rename(aside.with_suffix(""))
        matches = (_NAME.fullmatch(path.name) for path in self.directory.iterdir() if path.is_dir())
        return [int(match[1]) for match in matches if match]

    def _prune(self) -> None:
        for step in sorted(self._steps(), reverse=True)[self.keep :]:
            shutil.rmtree(self.path(step), ignore_errors=True)


def replace_folder(part: Path, final: Path) -> None:
    """Move a folder to where another may stand; killed between, the other one is left as `….old`."""
    aside = final.with_suffix(".old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)
    part.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, None when it is whole."""
    try:
        sums: dict[str, str] = json.loads((path / CHECKSUMS).read_text())
        for name, expected in sums.items():
            if _sha256(path / name) != expected:
                return f"{name} does not match its checksum"
        json.loads((path / STATE).read_text())
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None if STATE in sums else f"{STATE} has no checksum"


def _free_name(path: Path, suffix: str) -> Path:
    candidate, number = path.with_suffix(suffix), 1
    while candidate.exists():
        number += 1
        candidate = path.with_suffix(f"{suffix}-{number}")
    return candidate
