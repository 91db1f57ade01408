"""What a recipe says about its judge: `judge: {model: openai/gpt-4o, weight: 1.0}` and everything else by default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue, ValidationError

from agentvision.errors import RecipeError, suggest
from agentvision.recipe.parts import Name, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Share


class ModelSettings(Section):
    """One language model that judges, and how it may be asked."""

    model: Name
    """By litellm's name: `openai/gpt-4o`, `anthropic/…`, `hosted_vllm/…`; `openai/NAME` with `api_base` for any server."""
    api_base: str | None = None
    """Where a server of your own is, such as `http://localhost:8000/v1`."""
    api_key_env: str | None = None
    """The environment variable that holds the key. None: the provider's usual one."""
    temperature: NonNegativeFloat | None = 0.0
    """0 is greedy. None: not sent, for models that refuse it."""
    max_tokens: PositiveInt = 1024
    """Tokens of a reply; the reason comes before the score."""
    call_timeout_s: PositiveFloat = 20.0
    """Deadline of one request."""
    attempts: PositiveInt = 4
    """Requests for one reply, where one fails and another may not."""
    patience_s: PositiveFloat = 30.0
    """How long requests wait for a provider that is down before they fail at once."""
    concurrency: PositiveInt = 64
    """Requests at a time, of this process."""
    requests_per_minute: PositiveFloat | None = None
    """Of this process. None: no limit."""
    tokens_per_minute: PositiveFloat | None = None
    """Of this process, prompts and replies. None: no limit."""
    max_cost_usd: PositiveFloat | None = None
    """What this process may spend; then verdicts are invalid. None: no ceiling."""
    prices: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    """US dollars a million prompt and reply tokens, for models whose price litellm does not know."""
    json_schema: bool | None = None
    """Hold replies to a JSON schema. None: where litellm says that the model can be."""
    settings: dict[str, JsonValue] | None = None
    """Further parameters of each request: `top_p`, `seed`, `reasoning_effort`, …"""


class SmallSettings(ModelSettings):
    """The judge that is asked first. It may decide where all its samples say the same."""

    samples: PositiveInt = 2
    """Times that it is asked about one answer."""
    temperature: NonNegativeFloat | None = 0.7
    """Above 0, so that a judge that is unsure shows it."""


class JudgeSettings(ModelSettings):
    """The judge of a recipe: its model, what is asked before it, and how it is watched."""

    template: Name | None = None
    """`binary`, `graded`, or the path of your own jinja file. None: `binary`."""
    graded: bool | None = None
    """Whether your own template asks for scores between 0 and 1."""
    rules: bool = True
    """Let rules decide what is beyond doubt."""
    small: SmallSettings | None = None
    """A cheaper judge that is asked first. None: none."""
    reasks: NonNegativeInt = 1
    """How often a model whose reply has no verdict is asked again."""
    cache: Name | None = "user"
    """Where verdicts are kept: a file's path, or `user`, a file of this machine's in the user's cache folder. None: in
    the memory of this process."""
    audit_share: Share = 0.02
    """Share of what rules or the small judge decide that the large one is asked about too, to measure agreement."""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> JudgeSettings:
        """Checked. Raises `RecipeError` with a line for each problem, which begins with the key's path."""
        try:
            return cls.model_validate_json(json.dumps(dict(config), default=str), strict=True)
        except ValidationError as error:
            lines = [_line(details) for details in error.errors(include_url=False)]
            raise RecipeError("\n".join(dict.fromkeys(lines))) from None


_KINDS: dict[str, type[Section]] = {"small": SmallSettings}


def _line(details: Any) -> str:
    path = [str(part) for part in details["loc"]]
    where, value = ".".join(path), details["input"]
    kind = _KINDS.get(path[0], JudgeSettings) if len(path) > 1 else JudgeSettings
    if details["type"] == "extra_forbidden":
        return f"{where}: no such setting (value {value!r}).{suggest(path[-1], kind.model_fields)}"
    if details["type"] == "missing":
        return f"{where}: is required, and is not there"
    return f"{where}: {details['msg']} (value {value!r})"
