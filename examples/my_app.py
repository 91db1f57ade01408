"""The agent loop in an application of yours: a picture and a question in, an answer and all that led to it out.

    python examples/my_app.py

Here the model is the tiny one that ships with agentvision and the question comes from its own small world. For real work:
`Agent.from_recipe("visionthink", model="path/to/export")`, and a path, bytes or a PIL image.
"""

import asyncio

from agentvision import Agent
from agentvision.data.glyphs import GlyphVQA


async def main() -> None:
    samples = [GlyphVQA(split="test", seed=7)[i] for i in range(4)]
    async with Agent.from_recipe("visionthink", profile="tiny") as agent:
        # Any number of questions at a time: they share the model's batch.
        answers = await asyncio.gather(*(agent.run(s.images[0], s.question) for s in samples))
        for sample, answer in zip(samples, answers, strict=True):
            looked = "after a closer look" if answer.trajectory.looked_closer else "at first sight"
            print(f"{sample.question}  {answer.text!r} {looked} (truth: {sample.answer!r}; ended: {answer.stop})")
            for index, image in answer.images.items():
                print(f"    image {index}: {image.width}x{image.height}")


if __name__ == "__main__":
    asyncio.run(main())
