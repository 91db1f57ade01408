"""The program of one maths worker: a line of JSON in, a line of JSON out, for as long as its standard input is open.

Run as `python -m agentvision.rewards._maths_worker SECONDS`. It is a process because an expression like 9^9^9^9 keeps a
computer algebra system in C code that only a kill ends. Its caller kills it at the deadline; the alarm and the memory
limit are for a caller that was itself killed, and for expressions that eat memory faster than time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

MEMORY_BYTES = 4 << 30


def main() -> None:
    """Serve until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    seconds = float(sys.argv[1])
    equal("$1$", "$1$")  # the imports and grammars, before any deadline runs
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):
            # The default action ends the process, also inside C code.
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
        reply: dict[str, Any]
        try:
            reply = {"equal": equal(request["answer"], request["truth"])}
        except Exception as error:  # whatever the libraries raise is a fact about this pair
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


def equal(answer: str, truth: str) -> bool:
    """Whether two LaTeX texts are the same mathematics, by math-verify without its own clock."""
    from math_verify import parse, verify

    wanted = parse(truth, parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]
    given = parse(answer, parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]
    return bool(given) and bool(verify(wanted, given, timeout_seconds=None, raise_on_error=True))


if __name__ == "__main__":
    main()
