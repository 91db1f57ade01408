import pytest

from agentvision.data.glyphs import GlyphVQA
from agentvision.data.questions import LOOK
from agentvision.env import FirstView, VisionEnv
from agentvision.errors import DataError
from agentvision.images import ImageStore
from agentvision.protocol import Protocol
from agentvision.tools import resize_image
from agentvision.train.sft import demonstrate, demonstrator
from agentvision.types import ImageSegment, Sample, TextSegment

QUESTIONS = GlyphVQA(split="train", columns=3, rows=3, size=4)
TURNS = [f"<think>small type</think>\n{LOOK}", "<think>clear type</think>\n<answer>A</answer>"]


@pytest.fixture
def world(codec):
    store = ImageStore()

    def make_env():
        return VisionEnv(
            tools=[resize_image], vision=codec.vision, store=store, protocol=Protocol(), first_view=FirstView(0.5)
        )

    return {"codec": codec, "make_env": make_env, "store": store}


async def test_a_demonstration_becomes_the_ledger_that_sampling_it_would_make(world, codec):
    trajectory = await demonstrate(QUESTIONS[0], TURNS, **world)
    said = [s for s in trajectory.segments if isinstance(s, TextSegment) and s.sampled]
    assert [codec.decode(s.ids) for s in said] == TURNS
    assert all(s.ids[-1] == codec.stop_ids[0] for s in said), "the end of the turn is learned too"
    images = [s for s in trajectory.segments if isinstance(s, ImageSegment)]
    assert len(images) == 2 and images[1].tokens > images[0].tokens
    assert trajectory.answer == "A" and trajectory.looked_closer


@pytest.mark.parametrize("turns", [TURNS[:1], ["<think>x</think>\nno answer"], [TURNS[1], TURNS[1]]])
async def test_one_that_cannot_be_carried_out_is_a_clear_error(world, turns):
    with pytest.raises(DataError, match="cannot be carried out"):
        await demonstrate(QUESTIONS[0], turns, **world)


def test_demonstrations_come_from_the_source_or_from_the_samples():
    class Source(list):
        def demonstration(self, sample, *, look, seed):
            return [f"{look} {seed}"]

    assert demonstrator(Source([Sample("a", "?")]))(Sample("a", "?"), True, 3) == ["True 3"]
    own = Sample("a", "?", meta={"demonstration": ["said"]})
    assert demonstrator([own])(own, False, 0) == ["said"]
    with pytest.raises(DataError, match="writes no demonstrations"):
        demonstrator([Sample("a", "?")])
