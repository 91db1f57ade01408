"""From a recipe to the objects that run it. The only place where the two meet.

A recipe is data; tools, policies, rewards and data sources are found by name through `plugins`. Each `build_*` makes one
kind of object and nothing else, so that an application can take the parts it wants and bring its own for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from agentvision import plugins
from agentvision._settings import UnfitSettings, fitted, taken
from agentvision._workers import ctrl_c_raises
from agentvision.compute import VisionSpec
from agentvision.env import FirstView, VisionEnv
from agentvision.errors import AgentVisionError, PluginError, suggest
from agentvision.images import ImageStore
from agentvision.policy import Policy, SamplingParams
from agentvision.protocol import Protocol
from agentvision.recipe import Recipe
from agentvision.rewards import Rewards
from agentvision.rollout import Limits, MakeEnv
from agentvision.tool import Tool, tools_of

PACKAGED_MODELS = {"tiny-vlm": "tiny/checkpoint"}
"""What `package://NAME` stands for."""


def model_path(path: str) -> str:
    """A recipe's `model.path` as transformers takes it: `package://NAME` becomes the folder inside this package."""
    scheme, separator, name = path.partition("://")
    if not separator or scheme != "package":
        return path
    if name not in PACKAGED_MODELS:
        raise PluginError(f"no model {name!r} ships with this package.{suggest(name, PACKAGED_MODELS)}")
    return str(Path(str(files("agentvision"))) / PACKAGED_MODELS[name])


IMAGES = 16
"""What an engine is made for that sets its images aside beforehand, where an episode may not show more."""


def build_policy(
    recipe: Recipe, *, model: str | Path | None = None, train: bool = False, logs: Path | None = None
) -> Policy:
    """The recipe's policy with its model, or with another (`model`: a folder, a hub id, or a server's name of one).

    To `train` it, the model gets the recipe's adapter (`model.lora`); what is only asked has none, or has it merged. `logs` is
    a folder for what its servers say, where it starts any.
    """
    make, options = policy_call(recipe, model=model, train=train, logs=logs)
    with ctrl_c_raises():  # servers and weights take minutes
        return _call(make, options, f"policy {recipe.policy.backend!r}")


def policy_call(
    recipe: Recipe, *, model: str | Path | None = None, train: bool = False, logs: Path | None = None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What makes the recipe's policy, and what it is called with; nothing is loaded but the plug-in's code.

    A backend that loads files has `from_pretrained(path, …)`; another takes `model`, a name, which `policy.options.model` may
    give it. It gets what the recipe's section `model` says of the things that it has a parameter for. An option that is null
    is left to the backend.
    """
    backend = plugins.load("policies", recipe.policy.backend)
    settings = recipe.model
    loads = getattr(backend, "from_pretrained", None)
    make = backend if loads is None else loads
    of_model: dict[str, Any] = {
        "revision": settings.revision,
        "dtype": settings.dtype,
        "attn": settings.attn,
        "device": settings.device,
        "min_pixels": settings.min_pixels,
        "max_pixels": settings.max_pixels,
        "trust_remote_code": settings.trust_remote_code,
        "context_tokens": recipe.sampling.context_tokens,
        "max_images": max(IMAGES, recipe.env.max_images),
        "adapter": settings.lora if train else None,
        "logs": logs,
    }
    of_policy = {
        "max_rows": recipe.policy.max_rows,
        "placement": recipe.policy.placement,
        "endpoints": recipe.policy.endpoints or None,
    }
    # What the section `policy` sets is meant for this backend, which says so if it does not know it.
    asked = {key: value for key, value in of_policy.items() if value is not None}
    options = _taken(make, of_model) | asked | recipe.policy.options
    options = {key: value for key, value in options.items() if value is not None}
    if train and settings.lora is not None and "adapter" not in options:
        raise PluginError(f"policy.backend {recipe.policy.backend!r} trains no adapters: leave model.lora out")
    path = model_path(str(model) if model is not None else settings.path)
    if loads is not None:
        return make, {"path": path, **options}
    return make, options | {"model": path if model is not None else options.get("model", path)}


def check_policy(recipe: Recipe, *, model: str | Path | None = None, train: bool = False) -> None:
    """Raise for what would make every turn of the recipe's policy fail, where its backend has a `check` of its settings.

    Nothing is asked of a network for it, and no model is loaded.
    """
    check = getattr(plugins.load("policies", recipe.policy.backend), "check", None)
    if check is not None:
        make, options = policy_call(recipe, model=model, train=train)
        check(**fitted(make, options))


def model_name(recipe: Recipe, *, model: str | Path | None = None) -> str:
    """What the recipe's policy runs, as results and logs name it."""
    _, options = policy_call(recipe, model=model)
    return str(options.get("path", options.get("model")))


def _taken(make: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that a plug-in has a parameter for."""
    try:
        parameters = taken(make)
    except (TypeError, ValueError):  # written in C: it speaks for itself
        return values
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {key: value for key, value in values.items() if free or key in parameters}


def build_tools(recipe: Recipe) -> list[Tool]:
    """The tools that the recipe names. A plug-in is a `Tool`, a function that makes one, or a class with `@tool` methods."""
    tools: list[Tool] = []
    for plugin in recipe.env.tools:
        found = plugins.load("tools", plugin.name)
        if not isinstance(found, Tool):
            found = _call(found, dict(plugin.params), f"tool {plugin.name!r}")
        elif plugin.params:
            raise PluginError(
                f"tool {plugin.name!r} takes no parameters, and the recipe gives {sorted(plugin.params)!r}"
            )
        tools += offered(recipe, found)
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise PluginError(twice(name))
    return tools


def twice(name: str) -> str:
    """What is wrong with two tools of one name."""
    return f"two tools are called {name!r}; rename one (`dataclasses.replace(tool, name=…)`)"


def offered(recipe: Recipe, found: object) -> list[Tool]:
    """The tools of a tool or set of tools; calls of those without a limit of their own may take what the recipe says."""
    return [
        tool if tool.timeout_s is not None else replace(tool, timeout_s=recipe.env.tool_timeout_s)
        for tool in tools_of(found)
    ]


def build_protocol(recipe: Recipe, *, native: bool = False) -> Protocol:
    settings = recipe.protocol
    return Protocol(style=settings.style, system=settings.system, tool_reply=settings.tool_reply, native=native)


def env_maker(
    recipe: Recipe, *, store: ImageStore, vision: VisionSpec, tools: Sequence[Tool], native: bool = False
) -> MakeEnv:
    """A function that makes a fresh environment for each episode; all of them share the store.

    `native` says that the policy offers tools by its provider's own means.
    """
    settings = recipe.env
    return partial(
        VisionEnv,
        tools=tools,
        first_view=FirstView(scale=settings.first_view.scale),
        max_turns=settings.max_turns,
        max_images=settings.max_images,
        vision=vision,
        store=store,
        protocol=build_protocol(recipe, native=native and bool(tools)),
        on_malformed=settings.on_malformed,
    )


def vision_of(recipe: Recipe, policy: Policy | None = None) -> VisionSpec:
    """How pictures are sized and their tokens counted.

    By the policy's codec; where it has none, or there is no policy yet, as the recipe's model has it: what its folder says,
    else Qwen2.5-VL's rule. So whoever answers, the recipe shows the same pictures, and costs compare. No model is loaded.
    """
    if policy is not None and policy.codec is not None:
        return policy.codec.vision
    settings: dict[str, int] = {}
    config = Path(model_path(recipe.model.path)) / "preprocessor_config.json"
    if config.is_file():
        said = json.loads(config.read_text(encoding="utf-8"))
        size = said.get("size", {})
        found = {
            "patch": said.get("patch_size"),
            "merge": said.get("merge_size"),
            "min_pixels": said.get("min_pixels", size.get("shortest_edge")),
            "max_pixels": said.get("max_pixels", size.get("longest_edge")),
        }
        settings = {key: value for key, value in found.items() if value is not None}
    own = {"min_pixels": recipe.model.min_pixels, "max_pixels": recipe.model.max_pixels}
    return VisionSpec(**settings | {key: value for key, value in own.items() if value is not None})


def build_rewards(recipe: Recipe) -> Rewards:
    """The recipe's rewards, composed. In the recipe's file form each is one map of a name to its parameters."""
    return Rewards.from_config([part.model_dump() for part in recipe.rewards])


def sampling_of(recipe: Recipe, *, seed: int | None = None, temperature: float | None = None) -> SamplingParams:
    """Training's sampling, or evaluation's when a temperature is given."""
    settings = recipe.sampling
    return SamplingParams(
        temperature=settings.temperature if temperature is None else temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        seed=recipe.seed if seed is None else seed,
    )


def limits_of(recipe: Recipe) -> Limits:
    return Limits(context_tokens=recipe.sampling.context_tokens, deadline_s=recipe.env.deadline_s)


def _call(make: Any, options: dict[str, Any], what: str) -> Any:
    """Call a plug-in with the recipe's options; what it does not take, or refuses, is the user's error, and named."""
    try:
        return make(**fitted(make, options))
    except UnfitSettings as error:
        raise PluginError(f"{what}: {error}") from None
    except AgentVisionError:
        raise
    except Exception as error:
        raise PluginError(f"{what} cannot be made: {type(error).__name__}: {error}") from error
