"""The agent loop for applications: an image and a question in, an answer and everything that led to it out.

An `Agent` is a policy, tools and the settings of an episode; it holds no state of a conversation and no global state, so
one agent may serve many tasks and threads at once. Each run has an image store of its own and leaves nothing behind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, cast

from agentvision import build
from agentvision._workers import run_sync
from agentvision.errors import RecipeError
from agentvision.images import ImageStore
from agentvision.policy import Policy, SamplingParams, calls_natively
from agentvision.recipe import Recipe, load_recipe
from agentvision.rollout import Limits, MakeEnv, run_episode
from agentvision.tool import Tool
from agentvision.types import ImageSource, Sample, StopReason, Trajectory

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent found. `text` is None when the episode ended without an answer; `stop` says why it ended."""

    text: str | None
    trajectory: Trajectory
    images: Mapping[int, Image.Image]
    """What the model saw, by the view's index."""

    @property
    def stop(self) -> StopReason:
        return self.trajectory.stop


class Agent:
    """Answers questions about images by looking closer with tools. Safe to use from many tasks and threads at once.

    `make_env` gets the run's own image store and returns an environment; `from_recipe` makes one for `VisionEnv`.
    """

    def __init__(
        self,
        policy: Policy,
        make_env: Callable[[ImageStore], MakeEnv],
        *,
        tools: Sequence[Tool] = (),
        sampling: SamplingParams = SamplingParams(temperature=0.0),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self.policy, self.tools = policy, tuple(tools)
        self._make_env, self._sampling, self._limits = make_env, sampling, limits
        self._names = itertools.count()

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Recipe,
        *,
        model: str | None = None,
        profile: str | None = None,
        policy: Policy | None = None,
        tools: Sequence[Tool] | None = None,
        overrides: Sequence[str] = (),
    ) -> Self:
        """An agent that runs episodes as the recipe does.

        `recipe` is a name, a path or a loaded recipe; `model` stands in place of the recipe's; `policy` and
        `tools` replace the recipe's own. Turns are sampled at the recipe's evaluation temperature.
        """
        if isinstance(recipe, Recipe):
            if profile is not None or overrides:
                raise RecipeError("a recipe that is loaded takes no profile or overrides; give them to load_recipe")
        else:
            recipe = load_recipe(recipe, profile=profile, overrides=overrides)
        if tools is None:
            tools = build.build_tools(recipe)
        else:
            tools = [tool for each in tools for tool in build.offered(recipe, each)]
        if wrong := list(build.build_protocol(recipe).check([tool.schema for tool in tools])):
            raise RecipeError("\n".join(wrong))
        policy = build.build_policy(recipe, model=model) if policy is None else policy
        vision, native, settings = build.vision_of(recipe, policy), calls_natively(policy), recipe

        def make_env(store: ImageStore) -> MakeEnv:
            return build.env_maker(settings, store=store, vision=vision, tools=tools, native=native)

        sampling = build.sampling_of(recipe, temperature=recipe.evaluation.temperature)
        return cls(policy, make_env, tools=tools, sampling=sampling, limits=build.limits_of(recipe))

    async def run(
        self, image: ImageSource | Sequence[ImageSource], question: str, *, seed: int | None = None
    ) -> Answer:
        """Answer one question. Raises `ImageError` when an image cannot be read; all else is in the answer's `stop`."""
        images = cast("tuple[ImageSource, ...]", tuple(image) if isinstance(image, (list, tuple)) else (image,))
        store = ImageStore()
        for source in images:
            store.load(source)  # an unreadable image is the caller's error, not an episode's outcome
        name = f"run-{next(self._names)}"
        trajectory = await run_episode(
            Sample(id=name, question=question, images=images),
            env=self._make_env(store)(),
            policy=self.policy,
            store=store,
            sampling=self._sampling if seed is None else replace(self._sampling, seed=seed),
            limits=self._limits,
            group=f"{id(self)}-{name}",
            tools=[tool.schema for tool in self.tools],
        )
        return Answer(trajectory.answer, trajectory, {v.index: store.get(v.image) for v in trajectory.views})

    def run_sync(self, image: ImageSource | Sequence[ImageSource], question: str, *, seed: int | None = None) -> Answer:
        """`run` for code without an event loop; also works inside one, where it blocks."""
        return run_sync(lambda: self.run(image, question, seed=seed))

    async def close(self) -> None:
        """Free what the policy holds."""
        await self.policy.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()
