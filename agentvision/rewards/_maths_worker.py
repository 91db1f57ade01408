"""The program of one maths worker: a line of JSON in, a line of JSON out, for as long as its standard input is open.

Run as `python -m agentvision.rewards._maths_worker SECONDS`. Importing a computer algebra system takes seconds, and an
expression like 9^9^9^9 keeps it in C code that only a kill ends. So this process imports, and forks a child that
answers; an alarm kills the child at its deadline, the parent says so in its place and forks the next in milliseconds.
Without `fork` (Windows) the process answers by itself, and its caller kills it.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import sys
from collections import Counter
from contextlib import suppress
from typing import IO, Any

MEMORY_BYTES = 4 << 30

_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox) ?\{([^{}]*)\}")
_WORD = re.compile(r"[A-Za-z]+(?: ?\^ ?\{?-?[0-9]+\}?)?")


def main() -> None:
    """Serve until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    seconds = float(sys.argv[1])
    equal("$x^2+2x+1$", "$(x+1)^2$")  # imports, and fills the parser's caches
    print("ready", file=replies, flush=True)
    busy = mmap.mmap(-1, 1)  # shared with the child: whether a question is open
    if not hasattr(os, "fork"):
        serve(seconds, busy, replies)
        return
    while True:
        child = os.fork()
        if child == 0:
            try:
                serve(seconds, busy, replies)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return
        if busy[0]:
            busy[0] = 0
            late = os.WTERMSIG(status) == signal.SIGALRM
            error = f"deadline: more than {seconds:g} s" if late else f"ended by signal {os.WTERMSIG(status)}"
            print(json.dumps({"error": error}), file=replies, flush=True)


def serve(seconds: float, busy: mmap.mmap, replies: IO[str]) -> None:
    """Answer each line until the input ends, or the alarm ends this process."""
    alarm = hasattr(signal, "setitimer")
    for line in sys.stdin:
        request = json.loads(line)
        busy[0] = 1
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, seconds)  # its default action is the end, also inside C code
        reply: dict[str, Any]
        try:
            reply = {"equal": equal(request["answer"], request["truth"])}
        except Exception as error:  # whatever the libraries raise is a fact about this pair
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
        busy[0] = 0
        print(json.dumps(reply), file=replies, flush=True)


def equal(answer: str, truth: str) -> bool:
    """Whether two LaTeX texts are the same mathematics, by math-verify without its own clock.

    Left to itself it drops units, and takes 5 kg for 5 g. Here they may be dropped where they agree, or one side has none.
    """
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def same(form: NormalizationConfig) -> bool:
        targets = (LatexExtractionConfig(normalization_config=form), ExprExtractionConfig())
        wanted = parse(truth, targets, parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]
        given = parse(answer, targets, parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]
        return bool(given) and bool(verify(wanted, given, timeout_seconds=None, raise_on_error=True))

    keep, drop = (
        NormalizationConfig(basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="all")
        for units in (False, True)
    )
    given, wanted = (
        _words(normalize_latex(text, keep)) - _words(normalize_latex(text, drop)) for text in (answer, truth)
    )
    if given and wanted and given != wanted:
        return same(keep)
    return same(drop) or (bool(given or wanted) and same(keep))


def _words(text: str) -> Counter[str]:
    """What might be units, with their powers, however they are set."""
    return Counter(re.sub(r"[ {}]", "", word) for word in _WORD.findall(_TEXT.sub(r" \1", text)))


if __name__ == "__main__":
    main()
