"""What JSON may say in one way only."""

from __future__ import annotations

import pytest

from agentvision._strict_json import strict_json


def test_plain_json_is_read() -> None:
    assert strict_json('{"a": [1, 2.5, null, {"a": "b"}]}') == {"a": [1, 2.5, None, {"a": "b"}]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "a": 1}', "a key stands twice"),
        ('[{"b": {"a": 1, "a": 2}}]', "a key stands twice"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("{'a': 1}", "Expecting"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        strict_json(text)
