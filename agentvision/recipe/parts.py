"""What recipe sections are made of: the frozen base, value ranges, and plug-ins as `name` or `name: {key: value}`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Columns = Annotated[tuple[str, ...], BeforeValidator(_one_or_several)]
"""Column names; one alone may be written without the list."""
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of every part of a recipe: frozen, closed to unknown keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Plugin(Section):
    """A plug-in by name, written in YAML as `name` or as `name: {key: value, …}`."""

    name: Name
    """A registered name, a dotted path `package.module:name`, or `./file.py:name`."""
    params: dict[str, JsonValue] = {}
    """Keyword arguments of the plug-in."""

    @model_validator(mode="before")
    @classmethod
    def _from_file_form(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(data, cls) or (info.mode == "python" and isinstance(data, dict) and "name" in data):
            return data
        if isinstance(data, str):
            return {"name": data}
        if not isinstance(data, dict) or len(data) != 1:
            raise ValueError("must be a name, or a map of one name to its parameters such as `name: {key: value}`")
        ((name, params),) = data.items()
        if params is not None and not isinstance(params, dict):
            raise ValueError(f"the parameters of {name!r} must be a map, not {params!r}")
        own = {key: value for key, value in (params or {}).items() if key in cls.own_keys()}
        return {"name": name, "params": {k: v for k, v in (params or {}).items() if k not in own}, **own}

    @classmethod
    def own_keys(cls) -> frozenset[str]:
        """Keys of the map that are this program's, not the plug-in's."""
        return frozenset(cls.model_fields) - {"name", "params"}

    @model_serializer
    def _to_file_form(self) -> dict[str, Any]:
        return {self.name: {**{key: getattr(self, key) for key in sorted(self.own_keys())}, **self.params}}


class WeightSchedule(Section):
    """A weight that moves from one value to another during training."""

    initial: float
    """Weight at first."""
    final: float
    """Weight at last; also the one that evaluations take."""
    steps: PositiveInt
    """Steps of training in which it moves."""
    after: NonNegativeInt = 0
    """Steps of training before it moves."""
    shape: Literal["linear", "cosine"] = "linear"
    """How it moves: `linear` evenly, `cosine` leaving and arriving gently."""


_NUMBER = TypeAdapter(Annotated[float, Field(allow_inf_nan=False, strict=True)])


def _number_or_schedule(value: Any) -> Any:
    """Told apart before they are checked: the errors of a union would be those of both."""
    if isinstance(value, dict | WeightSchedule):
        return WeightSchedule.model_validate(value, strict=True)
    try:
        return _NUMBER.validate_python(value)
    except ValidationError:
        raise ValueError(
            f"must be a number, or a map such as {{initial: 0, final: 0.5, steps: 100}}, not {value!r}"
        ) from None


class RewardPart(Plugin):
    """One part of the total reward."""

    weight: Annotated[float | WeightSchedule, PlainValidator(_number_or_schedule)] = 1.0
    """Factor on the part's score in the total: a number, or a schedule."""
