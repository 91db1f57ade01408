"""Runs a command as a group of processes and ends the whole group when the command ends, or when whoever started it does.

A server's engine outlives a server that is killed, and the server its parent; this small process between them outlives
neither. Its standard input is a pipe that its parent holds and never writes to: when the parent closes it or dies, however
it dies, the pipe ends. It is run by its path and imports the standard library alone.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

LOOK_S = 0.2
GRACE_S = 5.0
PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    parent = os.getppid()
    asked: list[int] = []
    # Noted and no more: an exception would end the clean-up when a second one comes during it.
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    if sys.platform == "linux":
        # Orphans of the group come to this process, which waits for them; an init that does not would leave them behind.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    group = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True).pid
    code = None
    try:
        # The parent's own forks may hold the pipe open when it is gone: so who the parent is, is asked too.
        while code is None and not asked and os.getppid() == parent:
            if select.select([sys.stdin], [], [], LOOK_S)[0]:
                break
            code = reap(group)
    finally:
        code = end(group, code)
    return 128 + asked[0] if asked else code or 0


def reap(group: int) -> int | None:
    """Wait for those of the group that have ended; the leader's exit code if it was among them."""
    code = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-group, os.WNOHANG))[0]:
            if ended[0] == group:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


def end(group: int, code: int | None) -> int | None:
    """SIGTERM for the group, and SIGKILL for what is left of it after a grace; the leader's exit code."""
    until = time.monotonic() + GRACE_S
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        os.killpg(group, signal.SIGCONT)  # one that is stopped hears nothing else
        while True:
            ended = reap(group)
            code = ended if code is None else code
            os.killpg(group, 0 if time.monotonic() < until else signal.SIGKILL)
            time.sleep(0.05)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
