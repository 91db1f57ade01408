"""What a judge's server in tests and benches says: it reads the prompt it is sent, as a model would, and compares."""

from __future__ import annotations

import re

from tests.openai_server import Request

_TRUTH = re.compile(r"^Reference answer:\n(.*?)\n\n", re.MULTILINE | re.DOTALL)
_ANSWER = re.compile(r"^(={5} [0-9a-f]+ ={5})\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)


def asked(request: Request) -> tuple[str, str]:
    """(truth, answer) of a request for a verdict; raises for any other."""
    truth, answer = _TRUTH.search(request.text), _ANSWER.search(request.text)
    if truth is None or answer is None:
        raise ValueError(f"no truth or answer in {request.text!r}")
    return truth[1].strip(), "\n".join(line.removeprefix("| ") for line in answer[2].split("\n"))


def same_text(request: Request) -> str:
    """Right when the answer is the truth, word for word but for case."""
    truth, answer = asked(request)
    return f"They are compared as texts.\nScore: {int(truth.casefold() == answer.strip().casefold())}"
