"""An agentvision environment as a Gymnasium environment.

Actions are the model's turns as text. An observation is a dict: `text`, what there is to read next, and `image`, the
latest view on a canvas of fixed size (Gymnasium's spaces have no pictures of changing size; the untouched views are in
`info["views"]`). Gymnasium is an extra (`agentvision[gym]`) and synchronous, so episodes run on a loop of their own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from agentvision.env import Environment
from agentvision.errors import PluginError
from agentvision.geometry import Size
from agentvision.images import ImageStore
from agentvision.types import Message, Observation, Sample, StepResult

try:
    import gymnasium
    from gymnasium import spaces
except ImportError:
    raise PluginError("the Gymnasium adapter needs Gymnasium: pip install 'agentvision[gym]'") from None

T = TypeVar("T")


class AnyText(spaces.Text):
    """Text of any characters; samples are of printable ASCII."""

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length


class GymEnv(gymnasium.Env[dict[str, Any], str]):
    """Episodes over `samples`, drawn by the seed of `reset` (or named: `reset(options={"sample": index})`).

    `reward` maps each step's result to a number; by default it is the environment's own reward. `terminated` is True
    when the model's turn ended the episode, `truncated` when a limit did. Text longer than `max_chars` is cut.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self,
        env: Environment,
        samples: Sequence[Sample],
        *,
        store: ImageStore,
        reward: Callable[[StepResult], float] = lambda result: result.reward,
        canvas: Size = (448, 448),
        max_chars: int = 65536,
        render_mode: str | None = None,
    ) -> None:
        if not samples:
            raise ValueError("GymEnv needs at least one sample")
        self.env, self.samples, self.render_mode = env, samples, render_mode
        self._store, self._reward, self._canvas, self._max_chars = store, reward, canvas, max_chars
        self._image = np.zeros((canvas[1], canvas[0], 3), np.uint8)
        self.action_space = AnyText(max_length=max_chars, min_length=0)
        self.observation_space = spaces.Dict(
            {
                "text": AnyText(max_length=max_chars, min_length=0),
                "image": spaces.Box(0, 255, self._image.shape, np.uint8),  # (H, W, 3)
            }
        )
        self._loop: asyncio.AbstractEventLoop | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(len(self.samples)))
        chosen = (options or {}).get("sample", chosen)
        sample = self.samples[chosen]
        self._image = np.zeros_like(self._image)
        opening = self._wait(self.env.reset(sample, seed=int(self.np_random.integers(2**31))))
        return self._observation(opening), {"sample": sample.id, "views": opening.views}

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        result = self._wait(self.env.step(Message("assistant", (action,))))
        views = result.observation.views if result.observation else ()
        # Without what the clock says: Gymnasium wants equal steps to have equal infos.
        tool = replace(result.turn.tool, seconds=0.0) if result.turn.tool else None
        turn = replace(result.turn, tool=tool, seconds=0.0)
        info = {"turn": turn, "stop": result.stop, "answer": result.answer, "views": views}
        observation = self._observation(result.observation or Observation(()))
        return observation, float(self._reward(result)), result.terminated, result.truncated, info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride] (this mode's own type)
        """The latest view on its canvas, (H, W, 3) uint8."""
        return self._image.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._loop is not None:
            self._wait(self.env.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _observation(self, observation: Observation) -> dict[str, Any]:
        if observation.views:
            view = self._store.get(observation.views[-1].image).copy()
            view.thumbnail(self._canvas)
            self._image = np.zeros_like(self._image)
            self._image[: view.height, : view.width] = np.asarray(view)
        text = "\n".join(message.text for message in observation.messages)
        return {"text": text[: self._max_chars], "image": self._image.copy()}

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(self._loop,), name="gym-env", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()
