"""Runs a command as a group of processes and ends the whole group when the command ends, or when whoever started it does.

    _keeper.py FOLDER MEMORY COMMAND …

A server's engine outlives a server that is killed, and the server its parent; this small process between them outlives
neither. Its standard input is a pipe that its parent holds and never writes to: when the parent closes it or dies, however
it dies, the pipe ends. When the parent is gone this process also removes what it left: its FOLDER, and shared memory whose
names begin with MEMORY. The group stays in this process's session, so that a parent whose keeper was killed finds it.
It is run by its path and imports the standard library alone.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

LOOK_S = 0.2
GRACE_S = 5.0
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")


def main(folder: str, memory: str, command: list[str]) -> int:
    parent = os.getppid()
    asked: list[int] = []
    # Noted and no more: an exception would end the clean-up when a second one comes during it.
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    if sys.platform == "linux":
        # Orphans of the group come to this process, which waits for them; an init that does not would leave them behind.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    group = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0).pid
    code = None
    try:
        # The parent's own forks may hold the pipe open when it is gone: so who the parent is, is asked too.
        while code is None and not asked and os.getppid() == parent:
            if select.select([sys.stdin], [], [], LOOK_S)[0]:
                break
            code = reap(group)
    finally:
        code = end(group, code)
        if os.getppid() != parent:  # of several keepers the last one finds nothing in use
            shutil.rmtree(folder, ignore_errors=True)
            remove(set(SHARED_MEMORY.glob(f"{memory}*")))
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
            if time.monotonic() < until:
                os.killpg(group, 0)
            else:
                left = memory_of(in_session(os.getsid(0)))
                os.killpg(group, signal.SIGKILL)
                remove(left)  # what would have seen to it is killed too
            time.sleep(0.05)
    return code


def end_session(session: int) -> None:
    """SIGKILL for all that a keeper left which was killed itself; `session` is its process id. Waits until they are gone."""
    until = time.monotonic() + GRACE_S
    while (left := in_session(session)) and time.monotonic() < until:
        memory = memory_of(left)
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        remove(memory)
        time.sleep(0.05)


def in_session(session: int) -> list[int]:
    """Processes that run in it; none where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def memory_of(processes: list[int]) -> set[Path]:
    """Files of the shared memory that Python names itself (`psm_…`) and these processes have open."""
    found = set()
    for process in processes:
        with suppress(OSError):
            maps = Path(f"/proc/{process}/maps").read_text()
            found |= {Path(line.split()[-1]) for line in maps.splitlines() if f"{SHARED_MEMORY}/psm_" in line}
    return found


def remove(files: set[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
