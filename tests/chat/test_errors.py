"""What a caller is told when there is no reply."""

import pickle

import pytest

from agentvision.chat import ChatDown, ChatError, ChatFailed, ChatRefused, ChatSetupError, CostCeiling


@pytest.mark.parametrize("kind", [ChatError, ChatDown, ChatFailed, ChatRefused, ChatSetupError, CostCeiling])
def test_an_error_leaves_a_worker_process_whole(kind: type[ChatError]) -> None:
    error = pickle.loads(pickle.dumps(kind("nobody listens", reason="down")))
    assert (type(error), str(error), error.reason) == (kind, "nobody listens", "down")
