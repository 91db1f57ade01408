"""The recipe: what a run is, as one frozen model.

A section a noun. Nothing here is derived, nothing loads a model, a tool or a file: runtime objects are built from a
recipe elsewhere. Names of tools, rewards, policies and data sources are plain strings, because plug-ins are found when
the run is built. Rules that span sections stand in `rules`. YAML, profiles, overrides are `load`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, PrivateAttr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from agentvision.recipe.alarms import Alarms
from agentvision.recipe.dataset import Data, Split
from agentvision.recipe.lora import Lora
from agentvision.recipe.parts import (
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Plugin,
    PositiveFloat,
    PositiveInt,
    RewardPart,
    Section,
    Seed,
    Share,
)
from agentvision.recipe.problems import KeyPath, Origins
from agentvision.recipe.rules import contradictions


class Model(Section):
    """The model to run or train."""

    path: Name
    """A Hugging Face id, a local folder, or `package://tiny-vlm` (the small model that ships with this package)."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the weights as loaded: `auto` takes the checkpoint's. Training in bfloat16 wants float32 weights here and
    `trainer.mixed_precision: bf16`."""
    attn: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """Attention kernel: `auto` takes the library's choice."""
    device: Name = "auto"
    """`cpu`, `cuda`, `cuda:1`, …; `auto` takes what accelerate finds."""
    min_pixels: PositiveInt | None = None
    """Images below this area are enlarged before the vision tower. None: the processor's own."""
    max_pixels: PositiveInt | None = None
    """Images above this area are reduced before the vision tower. None: the processor's own."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Only for checkpoints you would run as a program."""
    freeze: tuple[Literal["vision", "projector"], ...] = ()
    """Parts that keep their weights: `vision` the vision tower, `projector` what joins it to the language model."""
    lora: Lora | None = None
    """Train an adapter and no weight of the model itself. None: train the weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class Policy(Section):
    """What completes turns."""

    backend: Name = "transformers"
    """A policy plug-in: `transformers`, `vllm`, `openai`, `litellm`, `replay`, …"""
    placement: Literal["colocate", "separate", "server"] | None = None
    """Where an engine of its own runs: in the training process, in servers started beside it, or at `endpoints`. None: the
    backend's choice."""
    endpoints: tuple[Name, ...] = ()
    """Addresses of running servers (`http://host:8000`), for `placement: server`."""
    max_rows: PositiveInt | None = None
    """Sequences decoded together at most. None: the backend's choice."""
    concurrency: PositiveInt | None = None
    """Episodes in flight at most. None: as many as a batch has."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keyword arguments of the backend; one that is null is left to it."""


class FirstView(Section):
    """What the model sees of an image before it asks for more."""

    scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on each side of the original: 0.5 costs a quarter of the visual tokens."""


class Env(Section):
    """The episode: what is seen, what can be done, when it ends."""

    first_view: FirstView = FirstView()
    """How the question's images are shown at first."""
    tools: tuple[Plugin, ...] = ()
    """Tools on offer: `- crop`, or `- crop: {key: value}`."""
    max_turns: PositiveInt = 2
    """Turns of the model at most; a tool call in the last is not carried out."""
    max_images: PositiveInt = 2
    """Views an episode about one image may show at most: the first, and those of tools. A question's further images add
    their first views to that."""
    on_malformed: Literal["retry", "stop"] = "retry"
    """After a turn outside the grammar: tell the model and go on while turns are left, or stop."""
    deadline_s: PositiveFloat = 600.0
    """Seconds an episode may take."""
    tool_timeout_s: PositiveFloat = 30.0
    """Seconds a tool call may take where the tool sets no limit of its own."""


class Protocol(Section):
    """The grammar of turns and the texts around them."""

    style: Literal["think", "plain"] = "think"
    """`think`: `<think>…</think>`, then one tool call or one `<answer>`. `plain`: the whole turn is the answer."""
    system: str | None = None
    """Jinja source of the system turn (sees `tools` and `native`). None: the template shipped for the style."""
    tool_reply: str | None = None
    """Jinja source of the turn that carries a tool's reply (sees `text`, `error`, `views`, `native`). None: the shipped one."""


class Sampling(Section):
    """How turns are sampled in training. Evaluation differs only where `evaluation` says so."""

    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus; training needs 1 (a cut distribution biases the ratio)."""
    top_k: NonNegativeInt = 0
    """Candidates a token; 0 is all of them, as training needs."""
    max_tokens: PositiveInt = 1024
    """Tokens a turn may have."""
    context_tokens: PositiveInt = 8192
    """Tokens an episode may have, images included."""


class KL(Section):
    """Pull towards the reference model, the one that training started from."""

    coef: NonNegativeFloat = 0.0
    """β in Eq. 3. At 0 no reference model is kept."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """With Δ = reference - policy log-prob: k1 = -Δ, k2 = Δ²/2, k3 = exp(Δ) - Δ - 1 (the paper's)."""


class Resample(Section):
    """What becomes of groups whose rewards are all equal: they carry no gradient."""

    max_rounds: NonNegativeInt = 2
    """Rounds of fresh prompts drawn in their place in a step. 0: they are dropped."""


class Correction(Section):
    """Importance weights of tokens that were not drawn by the probabilities that the trainer computes.

    An engine's kernels round otherwise, and rollouts ahead of the updates come from older weights. With a correction
    PPO's ratio is between the new weights and those that the step began with, computed by the trainer, and the ratio
    from there to what was recorded at sampling is a bounded weight of the policy gradient (decoupled PPO).
    """

    kind: Literal["none", "truncated", "masked"] = "none"
    """`none`: PPO's ratio is against what was recorded, as it is. `truncated`: weight min(ratio, C). `masked`: the ratio
    where it is within [1/C, C], else the token (or sequence) is left out."""
    level: Literal["token", "sequence"] = "token"
    """Whose ratio: each token's, or the product over all that the model said in a trajectory."""
    threshold: Annotated[float, Field(gt=1)] = 2.0
    """C."""


class Algorithm(Section):
    """Group-relative policy optimisation over several turns (VisionThink, Eq. 3)."""

    group_size: Annotated[int, Field(ge=2)] = 16
    """G: rollouts a prompt."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """ε: the ratio is clipped below at 1 - ε."""
    clip_high: PositiveFloat | None = None
    """The ratio is clipped above at 1 + this. None: same as `clip`."""
    kl: KL = KL()
    """The pull towards the reference."""
    entropy: NonNegativeFloat = 0.0
    """Coefficient of the entropy bonus."""
    advantage_std: bool = True
    """Divide by the group's unbiased standard deviation + 1e-6."""
    loss_norm: Literal["trajectory", "token", "constant"] = "trajectory"
    """`trajectory`: mean over a trajectory's own tokens, then over trajectories (Eq. 3). `token`: mean over all tokens
    of the batch. `constant`: sum over tokens divided by `sampling.max_tokens`, then mean over trajectories."""
    epochs: PositiveInt = 1
    """Passes over the trajectories of a step."""
    correction: Correction = Correction()
    """What sampler and trainer compute differently."""
    resample: Resample = Resample()
    """Groups without a signal."""


class Optimizer(Section):
    """AdamW and its schedule."""

    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the two moments."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled; not applied to biases and norms."""
    grad_clip: PositiveFloat = 1.0
    """Norm that the gradient is cut to."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up, towards 0 at the last step unless constant."""


class Trainer(Optimizer):
    """The loop: how many steps of what size, and what is kept."""

    steps: NonNegativeInt = 100
    """Steps of rollout and update. 0: this recipe is evaluated, not trained."""
    prompts_per_step: PositiveInt = 512
    """Prompts a step, each rolled out `algorithm.group_size` times."""
    mini_batch_prompts: PositiveInt | None = None
    """Prompts an optimizer update. None: one update a step."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens a forward pass at most; changes memory and speed, never the loss. None: the trainer's choice."""
    max_staleness: NonNegativeInt = 0
    """Steps by which the weights that sample may be behind those that learn. 0: rollouts and updates take turns, strictly
    on-policy. 1 or more: the rollouts of so many next steps may run while the update does; a policy that computes with the
    trainer's own weights then keeps a copy of them."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16`: compute in bfloat16 over float32 weights."""
    save_every: NonNegativeInt = 5
    """Steps between checkpoints; the last step is always saved. 0: only the last."""
    keep: PositiveInt = 2
    """Checkpoints kept."""
    eval_every: NonNegativeInt = 5
    """Steps between evaluations on held-out questions. 0: none while training."""
    eval_n: PositiveInt = 100
    """Questions of such an evaluation."""
    max_bad_steps: PositiveInt = 3
    """Skipped steps in a row (loss, gradient or log-probs not finite) after which the run stops."""
    max_invalid_share: Share = 0.5
    """Share of trajectories without a valid reward above which the run stops."""


class WarmStart(Optimizer):
    """A supervised stage before the first GRPO step, on demonstrations that the data source can write."""

    steps: PositiveInt
    """Updates."""
    batch_size: PositiveInt = 64
    """Demonstrations an update."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    data: Split = Split()
    """Source of the demonstrations."""


class Wandb(Section):
    """A copy of metrics and rollouts for Weights & Biases. The key comes from its own login, never from a recipe."""

    project: Name = "agentvision"
    """The project's name."""
    entity: str | None = None
    """User or team. None: the login's default."""
    group: str | None = None
    """Runs shown together."""
    tags: tuple[str, ...] = ()
    """Labels of the run."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes beside the run and sends nothing."""
    rollouts: NonNegativeInt = 8
    """Trajectories a step in the table of rollouts, with their images."""


class Tracking(Section):
    """What is written beside the checkpoints. `metrics.jsonl` always is."""

    wandb: Wandb | None = None
    """None: nothing is sent or imported."""
    trajectories_every: NonNegativeInt = 1
    """Steps between those whose trajectories are written. 0: none."""


class Evaluation(Section):
    """How held-out questions are asked; everything else is as in training."""

    n: PositiveInt = 500
    """Questions."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    seed: Seed | None = None
    """Picks the questions of a generated source and seeds sampling. None: the recipe's seed."""


class Recipe(Section):
    """A whole run. Frozen; compare with `==`, which looks at values and not at where they came from."""

    name: Name
    """Of the run, in reports and trackers."""
    description: str = ""
    """What it is for, in a sentence."""
    seed: Seed = 0
    """Of everything that draws: data, sampling, order, initial weights."""
    model: Model
    """The model to run or train."""
    policy: Policy = Policy()
    """What completes turns."""
    data: Data
    """Questions."""
    env: Env = Env()
    """The episode."""
    protocol: Protocol = Protocol()
    """The grammar of turns."""
    sampling: Sampling = Sampling()
    """How turns are sampled."""
    rewards: tuple[RewardPart, ...] = ()
    """Parts of the total reward: `- format: {weight: 0.5}`."""
    algorithm: Algorithm = Algorithm()
    """The objective."""
    trainer: Trainer = Trainer()
    """The loop."""
    warm_start: WarmStart | None = None
    """A supervised stage before. None: none."""
    alarms: Alarms = Alarms()
    """Signs of collapse, and what follows from them."""
    tracking: Tracking = Tracking()
    """What is written and sent."""
    evaluation: Evaluation = Evaluation()
    """Held-out questions."""

    _origins: Origins = PrivateAttr(default_factory=Origins)

    @property
    def origins(self) -> Mapping[KeyPath, str]:
        """Where each value came from (`visionthink.yaml:12`, `profile tiny, …`, `override`), by its path of keys.

        Values that are not here are defaults.
        """
        return self._origins.labels

    def with_origins(self, labels: Mapping[KeyPath, str]) -> Self:
        """An equal recipe that says so of where its values came from."""
        copy = self.model_copy()
        copy._origins = Origins(dict(labels))
        return copy

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        errors = [
            InitErrorDetails(type=PydanticCustomError("contradiction", "{what}", {"what": what}), loc=loc, input=None)
            for loc, what in contradictions(self)
        ]
        if errors:
            raise ValidationError.from_exception_data("Recipe", errors)
        return self
