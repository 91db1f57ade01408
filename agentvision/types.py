"""The vocabulary: every noun that crosses a module boundary, as a frozen value.

A `Sample` (one question) is rolled out G times into `Trajectory` values, which form a `Group`. A trajectory is a list of
`Turn` (what the model said, how it parsed, what its tool did), the `View` of every image it saw, the `Segment` list that
is the token ledger, and a `StopReason`. Rewards turn a trajectory into named `Score` values; a score may be *invalid*,
which is neither 0 nor 1. Users meet messages, tools and scores; token ids appear only in segments, which the framework
alone writes. Nothing here holds pixels: images are named by their content hash and live in an `ImageStore`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from agentvision.geometry import Affine, Box, Size

if TYPE_CHECKING:
    from PIL import Image

    ImageSource: TypeAlias = "Image.Image | Path | str | bytes | Resized"
else:
    ImageSource = Any

SCHEMA_VERSION = 1
"""Version of the trajectory schema on disk; a reader refuses what it does not know."""

ImageHash: TypeAlias = str
"""sha256 over mode, size and pixels, hex."""


class StopReason(StrEnum):
    """Why an episode ended. Each is a metric."""

    ANSWERED = "answered"
    """The model gave a final answer."""
    MALFORMED = "malformed"
    """The last turn was neither an answer nor a tool call that could be carried out."""
    MAX_TURNS = "max_turns"
    """The model asked for a tool when no turn was left."""
    LENGTH = "length"
    """A turn reached its token limit before it ended."""
    CONTEXT = "context"
    """The tool's reply would not have fitted into the context budget; it was not committed."""
    DEADLINE = "deadline"
    """The episode ran out of time."""
    POLICY_ERROR = "policy_error"
    """The policy failed; the reason stands in `Trajectory.error`."""
    BAD_IMAGE = "bad_image"
    """An image of the question cannot be read or shown: the row of the data set is bad, `Trajectory.error` says why."""
    ENV_ERROR = "env_error"
    """The environment failed (a bug in user code); the reason stands in `Trajectory.error`."""

    @property
    def broken(self) -> bool:
        """Whether the episode failed through no fault of the model, and so says nothing about it."""
        return self in (StopReason.POLICY_ERROR, StopReason.BAD_IMAGE, StopReason.ENV_ERROR)


@dataclass(frozen=True, slots=True)
class Resized:
    """A picture that counts as the original at another size; read and resized when it is loaded.

    `size` is exact. Without one the area is brought between `min_pixels` and `max_pixels`, the sides in proportion.
    """

    source: ImageSource
    size: Size | None = None
    min_pixels: int = 1
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one or more images.

    `images` are decoded late: a PIL image, a path, encoded bytes, a `data:` URL, or one of these `Resized`. `answer` is
    the ground truth (None when unknown). `meta` is carried along untouched; `meta["needs_original"]`, where a generator
    knows it, is used only for measuring.
    """

    id: str
    question: str
    images: tuple[ImageSource, ...] = ()
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """One image as the model saw it: an entry of the vision ledger.

    `index` counts from 1 in an episode and is the name the model uses. `image` names the pixels shown, `original` those
    they come from, `transform` maps the first's pixels to the second's. `size` is (width, height) after the processor's
    rounding, so it is exactly what the vision tower gets. `tokens` is its count of language-model tokens.
    `source` is "first_view" or the name of the tool that made it.
    """

    index: int
    image: ImageHash
    original: ImageHash
    transform: Affine
    size: Size
    original_size: Size
    tokens: int
    source: str

    def box_in_original(self, box: Box) -> Box:
        """The axis-aligned bounds, in the original's pixels, of a box given in this view's pixels."""
        corners = [self.transform(x, y) for x in (box.x0, box.x1) for y in (box.y0, box.y1)]
        xs, ys = [c[0] for c in corners], [c[1] for c in corners]
        return Box(min(xs), min(ys), max(xs), max(ys))


# --- messages -------------------------------------------------------------------------------------------------------

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ViewPart:
    """An image inside a message, by its view's index."""

    view: int


Part: TypeAlias = str | ViewPart


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message: text and views in order. Text is content, never control tokens."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(p for p in self.parts if isinstance(p, str))

    @property
    def views(self) -> tuple[int, ...]:
        return tuple(p.view for p in self.parts if isinstance(p, ViewPart))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A parsed request: the tool's name and its JSON arguments, not yet validated against the tool's schema."""

    name: str
    arguments: Mapping[str, Any]


class ToolError(StrEnum):
    """How a tool call failed."""

    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"
    RETRY = "retry"
    """The tool asked the model to try again (`ToolRetry`)."""
    FAILED = "failed"
    """The tool reported a failure that the model should know of (`ToolFailure`)."""
    DEADLINE = "deadline"
    CRASHED = "crashed"
    """The tool raised something else, or returned rubbish; the model sees a sanitized line."""
    IMAGE_BUDGET = "image_budget"
    """The call would have shown more images than the episode allows."""


@dataclass(frozen=True, slots=True)
class ToolRecord:
    """What became of one tool call. `views` are the indices of the views it delivered."""

    call: ToolCall
    views: tuple[int, ...] = ()
    text: str = ""
    error: ToolError | None = None
    detail: str = ""
    """For people and logs (may hold a traceback); never shown to the model."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.error is None


class ParseProblem(StrEnum):
    """Why a turn is not in the grammar. The text for the model is written by `protocol`."""

    NO_THINK = "no_think"
    UNCLOSED = "unclosed"
    NO_ACTION = "no_action"
    TWO_ACTIONS = "two_actions"
    STRAY_TEXT = "stray_text"
    BAD_JSON = "bad_json"
    BAD_CALL = "bad_call"
    """JSON, but not {"name": str, "arguments": object}."""
    EMPTY_ANSWER = "empty_answer"


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A turn read by the grammar. `problem` is None exactly when the whole turn is well formed.

    `answer` is also set when the turn holds one unambiguous answer but is otherwise malformed: the accuracy reward may
    then count, the format reward does not. `call` is set only when `problem` is None.
    """

    think: str | None = None
    call: ToolCall | None = None
    answer: str | None = None
    problem: ParseProblem | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing the model said and what came of it."""

    text: str
    parsed: ParsedTurn
    tool: ToolRecord | None = None
    tokens: int = 0
    """Tokens the model generated in this turn, its end-of-turn token included (0 where the policy counts none)."""
    seconds: float = 0.0
    usage: Mapping[str, float] = field(default_factory=dict)
    """What others counted for this turn (`prompt_tokens`, `completion_tokens`, `cost_usd`), each where it is known."""


# --- the token ledger (see tokens.py) -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A run of text tokens. `logprobs` are set, one an id, exactly when the model sampled them (`sampled`).

    They are the log-probabilities under the distribution sampled from: temperature applied, banned ids removed.
    `version` is the weights' version that sampled them; a turn that goes on under new weights is a segment a version.
    """

    ids: tuple[int, ...]
    sampled: bool = False
    logprobs: tuple[float, ...] | None = None
    version: int = 0

    def __post_init__(self) -> None:
        if self.sampled != (self.logprobs is not None) or (
            self.logprobs is not None and len(self.logprobs) != len(self.ids)
        ):
            raise ValueError("a sampled segment has one log-prob an id, and no other segment has any")


@dataclass(frozen=True, slots=True)
class ImageSegment:
    """The place of one view in the token stream: one placeholder for an engine, `tokens` of them for the trainer."""

    view: int
    image: ImageHash
    grid: tuple[int, int, int]
    """(t, h, w) in patches, before merging."""
    tokens: int


Segment: TypeAlias = TextSegment | ImageSegment


# --- scores, trajectories, groups -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Score:
    """A reward's verdict: a number, or invalid with a reason. Invalid leaves the baseline and the loss."""

    value: float | None
    reason: str = ""

    @classmethod
    def invalid(cls, reason: str) -> Score:
        return cls(None, reason)

    @property
    def valid(self) -> bool:
        return self.value is not None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished episode, complete: what the viewer, rewards, trainer, evaluation and server all read."""

    sample: Sample
    """The question; its `images` are dropped (the originals' hashes stand in `originals`)."""
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    views: tuple[View, ...]
    stop: StopReason
    answer: str | None = None
    segments: tuple[Segment, ...] = ()
    """The token ledger; empty for policies that do not deal in tokens."""
    originals: tuple[ImageHash, ...] = ()
    full_tokens: int = 0
    """Visual tokens that the originals cost at full resolution."""
    rollout: int = 0
    """Its place among the G rollouts of its sample."""
    seconds: float = 0.0
    error: str = ""
    env_reward: float = 0.0
    """Sum of the rewards that the environment itself gave."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    """Each reward's unweighted score, by name; filled by scoring."""
    reward: float | None = None
    """The weighted total; None when any part is invalid or before scoring."""
    correct: bool | None = None
    """The verdict of the reward that judges correctness; None when invalid or before scoring."""

    @property
    def looked_closer(self) -> bool:
        """Whether a tool delivered at least one view. A failed call does not count."""
        return any(turn.tool is not None and turn.tool.ok and turn.tool.views for turn in self.turns)

    @property
    def sampled_tokens(self) -> int:
        return sum(turn.tokens for turn in self.turns)

    @property
    def visual_tokens_additive(self) -> int:
        """Visual tokens of every view shown."""
        return sum(view.tokens for view in self.views)

    @property
    def visual_tokens_replacement(self) -> int:
        """Visual tokens when each later view of an original takes the place of the one before."""
        return sum({view.original: view.tokens for view in self.views}.values())

    def with_scores(self, scores: Mapping[str, Score], *, reward: float | None, correct: bool | None) -> Trajectory:
        return replace(self, scores=dict(scores), reward=reward, correct=correct)


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one prompt."""

    sample: Sample
    trajectories: tuple[Trajectory, ...]
    name: str = ""
    """Unique among the groups of a step, in which a sample may be drawn twice."""

    @property
    def rewards_G(self) -> Sequence[float | None]:
        return [t.reward for t in self.trajectories]


# --- the environment's answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Observation:
    """Messages for the model to read next, and the views that they show for the first time."""

    messages: tuple[Message, ...]
    views: tuple[View, ...] = ()
    full_tokens: int = 0
    """Set by `reset`: visual tokens that the sample's images cost at full resolution."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step of an environment returns. `stop` is set exactly when the episode is over."""

    turn: Turn
    observation: Observation | None
    stop: StopReason | None = None
    answer: str | None = None
    reward: float = 0.0
    """Reward of the environment's own, added to the recipe's rewards as the part `env`."""

    @property
    def terminated(self) -> bool:
        """Over because of what the model said."""
        return self.stop in (StopReason.ANSWERED, StopReason.MALFORMED)

    @property
    def truncated(self) -> bool:
        """Over because a limit was reached."""
        return self.stop is not None and not self.terminated
