"""What the agent loop itself costs: many episodes at once on an engine that has its answers ready.

    python bench/rollout_framework.py [--groups 125] [--size 16] [--rounds 15] [--profile]

VisionThink's environment, tool, codec and context budget on encoded pictures of the tiny data set; every episode looks at the
original and then answers. The engine answers no turn before all episodes have asked for it, so that all are in flight; its
words are tokens already, so that what is left is the framework's. A step is a turn: its request, the completion's entry into the
ledger, `env.step` with the tool, the reply's tokens; an episode's beginning and end are shared out over its steps. Time is
the processor's, over all threads, without the seconds spent on pixels (decoding, resampling, hashing, preprocessing),
which are counted apart with how often they were worked on. Of the times of some runs the least counts, since a machine is
seldom idle; of everything else the median.
Memory is Python's (`tracemalloc`), without pixels.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import io
import json
import pstats
import time
import tracemalloc
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from stopwatch import Stopwatch

from agentvision import build, images
from agentvision._heap import settled_heap
from agentvision.data import open_questions
from agentvision.images import ImageStore
from agentvision.policy import Completion, Request
from agentvision.recipe import Recipe, load_recipe
from agentvision.rollout import rollout_groups
from agentvision.tokens import Codec
from agentvision.types import Group, Sample, StopReason

TARGET_US = 200.0
TARGET_BYTES = 20_000
LOOK = '<think>small type</think>\n<tool_call>{"name": "resize_image", "arguments": {}}</tool_call>'
ANSWER = "<think>clear type</think>\n<answer>K7</answer>"


class ReadyEngine:
    """Says the same two turns in every episode, each as soon as all `episodes` have asked for it."""

    trainable = False
    version = 0

    def __init__(self, codec: Codec, *, episodes: int, on_turn: Callable[[int], None] = lambda turn: None) -> None:
        self.codec, self.episodes, self.on_turn = codec, episodes, on_turn
        self._said = [self._tokens(text) for text in (LOOK, ANSWER)]
        self._asked = [0, 0]
        self._ready = [asyncio.Event(), asyncio.Event()]

    async def complete(self, request: Request) -> Completion:
        turn = request.turn
        for view in request.views:
            self.codec.pixels(request.store, view.image)
        self._asked[turn] += 1
        if self._asked[turn] == self.episodes:
            self.on_turn(turn)
            self._ready[turn].set()
        await self._ready[turn].wait()
        text, ids, logprobs = self._said[turn]
        return Completion(text, tuple(ids), tuple(logprobs))

    async def release(self, session: str) -> None: ...

    async def close(self) -> None: ...

    def _tokens(self, text: str) -> tuple[str, list[int], list[float]]:
        ids = [*self.codec.encode_text(text), self.codec.stop_ids[0]]
        return text, ids, [-0.5 - k / 64 for k in range(len(ids))]


class Job:
    """The same groups again and again, each time with pictures not seen before: a fresh codec and a fresh store."""

    def __init__(self, *, groups: int, size: int) -> None:
        self.recipe: Recipe = load_recipe("visionthink", profile="tiny")
        self.groups, self.size = groups, size
        questions = open_questions(self.recipe, "train")
        self.samples = [(f"g{k}", _encoded(questions[k])) for k in range(groups)]
        self.tools = build.build_tools(self.recipe)

    @property
    def episodes(self) -> int:
        return self.groups * self.size

    def codec(self) -> Codec:
        return Codec.from_pretrained(build.model_path(self.recipe.model.path))

    async def run(self, engine: ReadyEngine, store: ImageStore) -> list[Group]:
        make_env = build.env_maker(self.recipe, store=store, vision=engine.codec.vision, tools=self.tools)
        stream = rollout_groups(
            self.samples,
            size=self.size,
            make_env=make_env,
            policy=engine,
            store=store,
            sampling=build.sampling_of(self.recipe),
            limits=build.limits_of(self.recipe),
            tools=[tool.schema for tool in self.tools],
        )
        return [group async for group in stream]


def _encoded(sample: Sample) -> Sample:
    """With its pictures as a data set on disk gives them: encoded."""
    encoded = []
    for picture in sample.images:
        file = io.BytesIO()
        images.open_image(picture).save(file, "PNG")
        encoded.append(file.getvalue())
    return Sample(sample.id, sample.question, tuple(encoded), sample.answer, sample.meta)


async def timed(job: Job, profile: cProfile.Profile | None = None) -> dict[str, float]:
    """One run: seconds of the processor, on pixels and beside them."""
    codec, store = job.codec(), ImageStore()
    engine = ReadyEngine(codec, episodes=job.episodes)
    watch = Stopwatch(clock=time.thread_time)
    spans = (
        (images, "_opened", "open"),
        (images, "_upright_rgb", "decode"),
        (images, "render", "render"),
        (images, "image_hash", "hash"),
        (codec, "image_processor", "preprocess"),
    )
    with settled_heap(), watch.on(spans):  # as in training
        wall, cpu = time.perf_counter(), time.process_time()
        if profile is not None:
            profile.enable()
        groups = await job.run(engine, store)
        if profile is not None:
            profile.disable()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    steps = _checked(groups)
    pixels = sum(watch.seconds.values())
    unique = {view.image for g in groups for t in g.trajectories for view in t.views}
    return {
        "steps": steps,
        "us_per_step": 1e6 * (cpu - pixels) / steps,
        "wall_s": wall,
        "pixels_ms_per_image": 1e3 * pixels / len(unique),
        "images": len(unique),
        "decoded": watch.calls["open"],
        "rendered": watch.calls["render"],
        "hashed": watch.calls["hash"],
        "preprocessed": codec.preprocessed,
    }


async def weighed(job: Job) -> dict[str, float]:
    """Bytes of Python objects an episode: while all wait for their first turn, for their second, and finished."""
    codec = job.codec()
    await Job(groups=1, size=2).run(
        ReadyEngine(codec, episodes=2), ImageStore()
    )  # caches that do not grow with episodes
    held: dict[str, float] = {}

    def weigh(name: str) -> None:
        gc.collect()
        held[name] = (tracemalloc.get_traced_memory()[0] - before - _patch_bytes(codec)) / job.episodes

    engine = ReadyEngine(codec, episodes=job.episodes, on_turn=lambda turn: weigh(f"bytes_live_turn_{turn + 1}"))
    store = ImageStore()
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        groups = await job.run(engine, store)
        weigh("bytes_finished")
    finally:
        tracemalloc.stop()
    _checked(groups)
    return held


def _patch_bytes(codec: Codec) -> int:
    """What the preprocessed pixels take; numpy reports its memory to `tracemalloc`, Pillow and torch do not."""
    return sum(pixels.values.nbytes for pixels in codec._pixels.values())


def _checked(groups: Sequence[Group]) -> int:
    """Every episode did what it was told to; the number of steps."""
    steps = 0
    for trajectory in (t for group in groups for t in group.trajectories):
        if trajectory.stop is not StopReason.ANSWERED or len(trajectory.turns) != 2 or not trajectory.looked_closer:
            raise RuntimeError(f"an episode went otherwise: {trajectory.stop}: {trajectory.error}")
        steps += len(trajectory.turns)
    return steps


def measure(*, groups: int = 125, size: int = 16, rounds: int = 15) -> dict[str, Any]:
    """All figures: times are the least of `rounds` runs, everything else is their median."""
    job = Job(groups=groups, size=size)
    asyncio.run(timed(Job(groups=1, size=2)))  # imports
    runs = [asyncio.run(timed(job)) for _ in range(rounds)]
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    middle |= {name: min(run[name] for run in runs) for name in ("us_per_step", "pixels_ms_per_image", "wall_s")}
    held = asyncio.run(weighed(job))
    return {
        "episodes": job.episodes,
        "group_size": size,
        "rounds": rounds,
        **middle,
        "us_per_step_rounds": [run["us_per_step"] for run in runs],
        **held,
        "bytes_per_episode": max(held.values()),
    }


def table(results: dict[str, Any]) -> str:
    """The figures as they stand in docs/results.md."""
    rows = [
        ("framework time a step", f"{results['us_per_step']:.0f} µs", f"≤ {TARGET_US:.0f} µs"),
        ("Python objects of an episode, at most", f"{results['bytes_per_episode'] / 1000:.1f} KB",
         f"≤ {TARGET_BYTES // 1000} KB"),
        ("… waiting for its first turn", f"{results['bytes_live_turn_1'] / 1000:.1f} KB", ""),
        ("… waiting for its second turn", f"{results['bytes_live_turn_2'] / 1000:.1f} KB", ""),
        ("… finished", f"{results['bytes_finished'] / 1000:.1f} KB", ""),
        ("pixels: decoding, resampling, hashing, preprocessing", f"{results['pixels_ms_per_image']:.2f} ms an image", ""),
        ("unique images, and how many were preprocessed", f"{results['images']:.0f}, {results['preprocessed']:.0f}",
         "once each"),
    ]  # fmt: skip
    head = (
        f"{results['episodes']:,} episodes at once in groups of {results['group_size']}, {results['steps']:,.0f} steps;"
    )
    lines = [f"{head} the least of {results['rounds']} runs.", "", "| what | measured | wanted |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=125)
    parser.add_argument("--size", type=int, default=16, help="episodes a group")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", action="store_true", help="print where one run's time on the event loop goes")
    arguments = parser.parse_args()
    if arguments.profile:
        profile = cProfile.Profile()
        asyncio.run(timed(Job(groups=arguments.groups, size=arguments.size), profile))
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    results = measure(groups=arguments.groups, size=arguments.size, rounds=arguments.rounds)
    print(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
