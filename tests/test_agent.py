"""The agent for applications: any loop, any thread, no state left behind; on scripted policies."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from agentvision import Agent, StopReason, ToolContext, ToolResult, tool
from agentvision.errors import ImageError, PluginError, RecipeError
from agentvision.policy import Completion

LOOK = '<think>small</think><tool_call>{"name": "resize_image", "arguments": {}}</tool_call>'
ANSWER = "<think>clear</think><answer>K7</answer>"
PICTURE = Image.new("RGB", (224, 112), "red")


class Script:
    """Says the lines in turn, in every episode; deals in messages alone."""

    trainable, codec, version = False, None, 0

    def __init__(self, *lines: str) -> None:
        self.lines, self.requests, self.released = lines, [], []

    async def complete(self, request) -> Completion:
        await asyncio.sleep(0)
        self.requests.append(request)
        return Completion(self.lines[request.turn])

    async def release(self, session: str) -> None:
        self.released.append(session)

    async def close(self) -> None:
        self.closed = True


def agent(*lines: str, **options) -> Agent:
    return Agent.from_recipe("visionthink", policy=Script(*lines), **options)


async def test_an_answer_comes_with_all_that_led_to_it():
    answer = await agent(LOOK, ANSWER).run(PICTURE, "What does it say?")
    assert (answer.text, answer.stop) == ("K7", StopReason.ANSWERED)
    assert answer.trajectory.looked_closer
    assert {n: image.size for n, image in answer.images.items()} == {1: (112, 56), 2: (224, 112)}


async def test_an_episode_without_an_answer_says_why():
    answer = await agent(LOOK, LOOK).run(PICTURE, "?")
    assert (answer.text, answer.stop) == (None, StopReason.MAX_TURNS)


async def test_many_questions_at_once_do_not_meet():
    one = agent(LOOK, ANSWER)
    pictures = [Image.new("RGB", (224, 112), (n, 0, 0)) for n in range(8)]
    answers = await asyncio.gather(*(one.run(p, f"question {n}") for n, p in enumerate(pictures)))
    for n, answer in enumerate(answers):
        assert answer.trajectory.sample.question == f"question {n}"
        assert answer.images[2].getpixel((0, 0)) == (n, 0, 0)
    sessions = {r.session for r in one.policy.requests}
    assert len(sessions) == 8
    assert sorted(one.policy.released) == sorted(sessions)


def test_it_serves_threads_and_loops_of_their_own():
    one = agent(LOOK, ANSWER)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: one.run_sync(PICTURE, str(n)), range(8)))
    assert [a.trajectory.sample.question for a in answers] == [str(n) for n in range(8)]
    assert {a.text for a in answers} == {"K7"}


async def test_the_blocking_form_also_works_inside_a_loop():
    assert agent(ANSWER).run_sync(PICTURE, "?").text == "K7"


async def test_tools_of_ones_own_replace_the_recipes():
    @tool
    def count(ctx: ToolContext) -> ToolResult:
        """Count the images."""
        return ToolResult(f"{len(ctx.views)}")

    one = agent(LOOK.replace("resize_image", "count"), ANSWER, tools=[count])
    answer = await one.run(PICTURE, "?")
    assert answer.trajectory.turns[0].tool.text == "1"
    assert one.policy.requests[0].tools == (count.schema,)


async def test_several_images_are_numbered_as_they_come():
    answer = await agent(ANSWER).run([PICTURE, Image.new("RGB", (56, 56))], "Which is larger?")
    assert list(answer.images) == [1, 2]


async def test_an_unreadable_image_is_the_callers_error(tmp_path):
    with pytest.raises(ImageError):
        await agent(ANSWER).run(tmp_path / "nothing.png", "?")
    with pytest.raises(ImageError):
        await agent(ANSWER).run(b"not an image", "?")


def test_an_unknown_recipe_or_tool_is_named():
    with pytest.raises(RecipeError, match="visionthink"):
        Agent.from_recipe("visionthnk", policy=Script())
    with pytest.raises(PluginError, match="crop"):
        Agent.from_recipe("visionthink", policy=Script(), overrides=["env.tools=[corp]"])


async def test_closing_it_closes_its_policy():
    async with agent(ANSWER) as one:
        pass
    assert one.policy.closed
