"""The ledger against oracles of its own (bench/rollout_exact.py, which runs 1,000 conversations), and that these can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conversations import Conversation, converse
from rollout_exact import CHECKS, collapsed, compare, expanded, failed_checks, make_processor
from tokenizers import Tokenizer

from agentvision.tokens import Codec
from agentvision.types import ImageSegment, Segment, TextSegment

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def processor(codec: Codec):
    return make_processor(codec)


async def test_random_conversations_are_exact(codec: Codec, processor) -> None:
    found = await compare(codec, range(200), processor=processor)
    assert found.differences == dict.fromkeys(CHECKS, 0), found.examples
    assert all(found.contents[f"with {n} pictures"] >= 10 for n in range(5))
    assert found.contents["compared with the processor"] >= 50


def edited(conversation: Conversation, edit: Callable[[list[Segment]], None]) -> Conversation:
    segments = list(conversation.segments)
    edit(segments)
    return replace(conversation, trajectory=replace(conversation.trajectory, segments=tuple(segments)))


def place_of(segments: list[Segment], wanted: Callable[[Segment], bool]) -> int:
    return next(k for k, segment in enumerate(segments) if wanted(segment))


def drop_an_image_token(segments: list[Segment]) -> None:
    k = place_of(segments, lambda s: isinstance(s, ImageSegment))
    segments[k] = replace(segments[k], tokens=segments[k].tokens - 1)


def swap_two_images(segments: list[Segment]) -> None:
    a, b = [k for k, s in enumerate(segments) if isinstance(s, ImageSegment)][:2]
    segments[a], segments[b] = segments[b], segments[a]


def train_on_the_prompt(segments: list[Segment]) -> None:
    segments[0] = replace(segments[0], sampled=True, logprobs=(-1.0,) * len(segments[0].ids))


def shift_the_logprobs(segments: list[Segment]) -> None:
    k = place_of(segments, lambda s: isinstance(s, TextSegment) and s.sampled)
    segments[k] = replace(segments[k], logprobs=segments[k].logprobs[1:] + segments[k].logprobs[:1])


def lose_a_token(segments: list[Segment]) -> None:
    segments[0] = replace(segments[0], ids=segments[0].ids[:-2] + segments[0].ids[-1:])


@pytest.mark.parametrize(
    ("edit", "caught"),
    [
        (drop_an_image_token, {"bijection", "written_out", "processor", "images", "prefix"}),
        (swap_two_images, {"bijection", "written_out", "processor", "images", "prefix"}),
        (train_on_the_prompt, {"aligned", "prefix"}),
        (shift_the_logprobs, {"aligned", "prefix"}),
        (lose_a_token, {"written_out", "processor", "prefix"}),
    ],
)
async def test_each_fault_is_caught(codec: Codec, processor, edit, caught: set[str]) -> None:
    conversation = await several_images(codec)
    assert set(failed_checks(conversation, codec, processor)) == set()
    assert set(failed_checks(edited(conversation, edit), codec, processor)) == caught


async def several_images(codec: Codec) -> Conversation:
    """A clean conversation of some turns whose first two images differ in size."""
    for seed in range(1000):
        conversation = await converse(codec, seed)
        views = conversation.trajectory.views
        first = [s for s in conversation.segments if isinstance(s, ImageSegment)][:2]
        turns = len(conversation.said) > 1 and len(conversation.requests[1].segments) > 5
        if conversation.clean and turns and len(views) > 1 and len({s.tokens for s in first}) == 2:
            return conversation
    raise AssertionError("no such conversation")


async def test_control_tokens_taken_from_content_are_caught(codec: Codec) -> None:
    """An encoder that reads `<|im_end|>` in a question as the control token, as tokenizers do by default."""
    naive = Codec(codec.tokenizer, codec.image_processor, vocab_size=codec.vocab_size, stop_ids=codec.stop_ids)
    naive._plain = Tokenizer.from_str(codec.tokenizer.backend_tokenizer.to_str())
    found = await compare(naive, range(20))
    assert found.differences["written_out"] >= 5


def test_streams_that_do_not_fit_together_are_refused() -> None:
    assert expanded([1, 9, 2, 9], [3, 1], 9) == [1, 9, 9, 9, 2, 9]
    assert collapsed([1, 9, 9, 9, 2, 9], [3, 1], 9) == [1, 9, 2, 9]
    assert collapsed([9, 9, 9, 9], [3, 1], 9) == [9, 9]
    for ids, tokens in (([1, 9, 2], [2]), ([1, 2], [2]), ([9, 9], [2, 1])):
        with pytest.raises(ValueError, match=r"cut short|no placeholder"):
            collapsed(ids, tokens, 9)
    with pytest.raises(ValueError, match="no placeholder"):
        expanded([1, 9], [1, 1], 9)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_vllm_expands_the_engines_stream_to_the_trainers() -> None:
    """In a process of its own: importing vLLM changes the one that it is in."""
    program = "import json, rollout_exact; print('\\n' + json.dumps(rollout_exact.measure(conversations=60)))"
    out = subprocess.run([sys.executable, "-c", program], cwd=BENCH, check=True, capture_output=True, text=True)
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["contents"]["compared with vLLM"] == 60
    assert found["differences"] == dict.fromkeys((*CHECKS, "vllm"), 0), found["examples"]
