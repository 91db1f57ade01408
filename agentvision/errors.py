"""The failure model.

A bad rollout is data, not a crash: what goes wrong inside an episode (a tool that fails, a turn that does not parse, a
deadline, a budget) is recorded on its trajectory with a reason, and training goes on. Three exceptions let user code say
which failure it means:

- `ToolRetry(message)`: the model made a mistake that it can mend; it sees the message and may call again.
- `ToolFailure(message)`: the tool could not do it; the model should know, and go on without.
- anything else that a tool, reward or policy raises is a bug of that plug-in: the model sees a line without details, the
  record keeps the traceback, the metrics count it.

What goes wrong outside episodes is an `AgentVisionError`: one clear line that says what, where and how to mend it. The
command line prints it and exits with 2; `--debug` adds the traceback. Every other exception is a bug of this program.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AgentVisionError(Exception):
    """Base of every error that a user can mend. The message says what, where and the fix."""


class RecipeError(AgentVisionError):
    """A recipe that cannot be read or is not valid; lists every problem at once."""


class PluginError(AgentVisionError):
    """A tool, reward, policy or data source that cannot be found or loaded."""


class ImageError(AgentVisionError):
    """An image that cannot be read, is not allowed, or is too large, too small or too long."""


class DataError(AgentVisionError):
    """A data set that cannot be found or read."""


class ModelError(AgentVisionError):
    """A model or checkpoint that cannot be found, read or used."""


class RunError(AgentVisionError):
    """A run directory that may not be written or resumed."""


class TrainingStopped(AgentVisionError):
    """Training ended itself (non-finite steps, invalid rewards, collapse); the last checkpoint is whole and named."""


class ToolRetry(Exception):
    """Raised by a tool: the model may mend its call and try again. The message is shown to the model."""


class ToolFailure(Exception):
    """Raised by a tool: it could not be done, and the model should know. The message is shown to the model."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something; its type where none does."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for the nearest of the known names, else their list; for the end of an error message."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


def exception_of(detail: str) -> str:
    """What was raised, without the traceback before it, on one line; a detail that is no traceback as it is."""
    lines = detail.strip().splitlines()
    frames = [k for k, line in enumerate(lines) if line.startswith('  File "')]
    raised = [k for k, line in enumerate(lines) if frames and k > frames[-1] and not line.startswith(" ")]
    return " ".join(" ".join(lines[raised[0] if raised else 0 :]).split())
