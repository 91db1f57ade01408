"""The command line: one file a command, imported when it is called.

Nothing here imports torch. Every error that a user can mend is one clear line on stderr and exit code 2; `--debug`, before
or after the command, adds the traceback. Ctrl-C ends with 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import cyclopts

from agentvision import __version__
from agentvision.cli._terminal import printable
from agentvision.errors import AgentVisionError

app = cyclopts.App(
    name="agentvision",
    help="Train, evaluate and run agents that look closer at images.",
    help_epilogue="--debug shows the traceback of an error.",
    version=__version__,
    help_format="plaintext",  # markdown would cost half of the time that --help takes
    suppress_keyboard_interrupt=False,  # else it ends with 130 and not a word, and --debug shows nothing
)
app.command("agentvision.cli.train:train", name="train", help="Train a recipe's policy.")
app.command("agentvision.cli.eval:evaluate", name="eval", help="Evaluate a model on a recipe's held-out questions.")
app.command("agentvision.cli.doctor:doctor", name="doctor", help="Test what a run will trust, before it starts.")
app.command("agentvision.cli.run:run", name="run", help="Ask one question about one image, and see every turn.")
app.command("agentvision.cli.report:report", name="report", help="Write the report of a run directory.")
app.command("agentvision.cli.tools:app", name="tools", help="List tools, and try one on a picture.")
app.command("agentvision.cli.rewards:app", name="rewards", help="List rewards, and try one on an answer or a run.")
app.command("agentvision.cli.data:app", name="data", help="Check and look at data sets, and make new ones.")
app.command("agentvision.cli.judge:app", name="judge", help="Check how good a judge is.")
app.command("agentvision.cli.recipes:app", name="recipes", help="List, show and check recipes.")
app.register_install_completion_command(help="Have the shell complete commands and options.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `agentvision` command."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        app(tokens, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
    except AgentVisionError as error:
        if debug:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): there is nobody left to tell.
        sys.stderr.close()
        sys.exit(141)
