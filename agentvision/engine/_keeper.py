"""Runs a command as a group of processes and ends the whole group when the command ends, or when whoever started it does.

A server's engine outlives a server that is killed, and the server its parent; this small process between them outlives
neither. Its standard input is a pipe that its parent holds and never writes to: when the parent closes it or dies, however
it dies, the pipe ends. It is run by its path and imports the standard library alone.
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

LOOK_S = 0.2
GRACE_S = 5.0


def main(command: list[str]) -> int:
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        # The parent's own forks may hold the pipe open when it is gone: so who the parent is, is asked too.
        while child.poll() is None and os.getppid() == parent:
            if select.select([sys.stdin], [], [], LOOK_S)[0]:
                break
    finally:
        end(child)
    return child.returncode


def end(child: "subprocess.Popen[bytes]") -> None:
    """SIGTERM for the group, and SIGKILL for what is left of it after a grace."""
    until = time.monotonic() + GRACE_S
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        while time.monotonic() < until:
            child.poll()
            os.killpg(child.pid, 0)
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
