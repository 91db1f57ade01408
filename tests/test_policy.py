"""A completion: which weights sampled which of its ids, and what the ledger makes of it."""

import random
from itertools import pairwise

import pytest

from agentvision.policy import Completion, VersionSpan
from agentvision.types import TextSegment


def test_the_ledger_gains_a_segment_a_version_and_loses_nothing():
    rng = random.Random(0)
    for _ in range(200):
        length = rng.randrange(1, 20)
        ids = tuple(rng.randrange(1000) for _ in range(length))
        logprobs = tuple(-rng.random() for _ in ids)
        cuts = sorted(rng.sample(range(1, length), rng.randrange(min(length, 4)))) if length > 1 else []
        spans = tuple(VersionSpan(7 + k, a, b) for k, (a, b) in enumerate(pairwise([0, *cuts, length])))
        segments = Completion("", ids, logprobs, versions=spans).segments
        assert tuple(i for s in segments for i in s.ids) == ids
        assert tuple(p for s in segments for p in s.logprobs or ()) == logprobs
        assert [s.version for s in segments] == [7 + k for k in range(len(spans))] and all(s.sampled for s in segments)


def test_ids_without_versions_are_of_the_weights_that_never_change():
    assert Completion("a", (1, 2), (-1.0, -2.0)).segments == (TextSegment((1, 2), sampled=True, logprobs=(-1.0, -2.0)),)
    assert Completion("text alone").segments == ()


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 1, 3)],  # the first id is nobody's
        [(0, 0, 2)],  # the last is
        [(0, 0, 2), (1, 1, 3)],  # one is of two
        [(0, 0, 1), (1, 2, 3)],  # one is skipped
        [(0, 0, 3), (1, 3, 3)],  # a version that sampled nothing
        [(0, 0, 4)],
    ],
)
def test_versions_that_do_not_cover_the_ids_are_refused(spans):
    with pytest.raises(ValueError, match=r"versions of a turn"):
        Completion("", (1, 2, 3), (0.0,) * 3, versions=tuple(VersionSpan(*s) for s in spans))
