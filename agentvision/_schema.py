"""A function's parameters as a JSON schema, and the strict validation of what a model sends for them.

Types become the schema (pydantic), the docstring its descriptions (griffe: Google, NumPy or Sphinx style). The schema
is short, because every episode pays for its tokens: no titles, no `null` branches. Nothing is coerced: "1" is no 1.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model

from agentvision.errors import PluginError, suggest
from agentvision.geometry import Box

_SHOWN = 60
"""Characters of a wrong value that an error repeats."""


class BadArguments(Exception):
    """The arguments of a call do not fit the tool's schema; the message is written for the model."""


class Arguments:
    """The model-facing parameters of a tool function: all after the context (and after `self`)."""

    def __init__(self, function: Callable[..., Any], tool: str, *, context: type) -> None:
        self._tool = tool
        try:
            hints = get_type_hints(function, include_extras=True)
            parameters = list(inspect.signature(function).parameters.values())
        except (NameError, TypeError, ValueError) as error:
            raise PluginError(f"tool {tool!r}: its type hints cannot be read ({error}); import their names") from None
        if parameters and parameters[0].name == "self":
            del parameters[0]
        if not parameters or hints.get(parameters[0].name) is not context:
            raise PluginError(f"tool {tool!r}: its first parameter must be `ctx: ToolContext`")
        docstring = inspect.getdoc(function)
        if not docstring:
            raise PluginError(f"tool {tool!r} has no docstring; it is what the model reads, so write one")
        self.description, self._descriptions = _read_docstring(docstring)
        self._parameters = parameters[1:]
        self._types: dict[str, Any] = {}
        for parameter in self._parameters:
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise PluginError(f"tool {tool!r}: {str(parameter)!r} has no name of its own; use plain parameters")
            if parameter.name not in hints:
                raise PluginError(f"tool {tool!r}: parameter {parameter.name!r} has no type")
            self._types[parameter.name] = _boxes_as_arrays(hints[parameter.name])
        for name in self._descriptions.keys() - self._types.keys():
            raise PluginError(f"tool {tool!r}: its docstring describes {name!r}.{suggest(name, self._types)}")

    @cached_property
    def _model(self) -> type[BaseModel]:
        # Fields go by number, with the parameter's name as alias: `schema`, `copy` … would clash with pydantic's own.
        fields: dict[str, Any] = {}
        for i, p in enumerate(self._parameters):
            default = ... if p.default is p.empty else p.default
            description = self._descriptions.get(p.name)
            fields[f"arg_{i}"] = (self._types[p.name], Field(default, alias=p.name, description=description))
        config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
        try:
            return create_model(self._tool, __config__=config, **fields)
        except PydanticUserError as error:
            raise PluginError(f"tool {self._tool!r}: a parameter's type has no JSON schema: {error.message}") from None

    @cached_property
    def schema(self) -> dict[str, Any]:
        """A JSON schema of type object; the same in every process."""
        try:
            schema = _compact(self._model.model_json_schema())
        except PydanticUserError as error:
            raise PluginError(f"tool {self._tool!r}: a parameter's type has no JSON schema: {error.message}") from None
        schema.pop("additionalProperties", None)
        schema.setdefault("properties", {})
        return {"type": schema.pop("type"), **schema}

    def validate(self, arguments: object) -> dict[str, Any]:
        """The function's keyword arguments. Raises `BadArguments`, naming every problem."""
        if not isinstance(arguments, Mapping):
            raise BadArguments(f"The arguments of {self._tool} must be a JSON object.")
        try:
            values = self._model.model_validate_json(json.dumps(dict(arguments)))
        except ValidationError as error:
            raise BadArguments(" ".join(self._explain(e) for e in error.errors()[:5])) from None
        except (TypeError, ValueError, RecursionError):
            raise BadArguments(f"The arguments of {self._tool} are not valid JSON.") from None
        return {p.name: getattr(values, f"arg_{i}") for i, p in enumerate(self._parameters)}

    def _explain(self, error: Mapping[str, Any]) -> str:
        name = str(error["loc"][0])[:_SHOWN] if error["loc"] else ""
        if error["type"] == "missing" and len(error["loc"]) == 1:
            return f"{self._tool} needs the argument {name!r}."
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            return f"{self._tool} has no argument {name!r}.{suggest(name, self._types)}"
        if not error["loc"]:
            return f"The arguments of {self._tool} are not valid JSON."
        what = error["msg"].removeprefix("Value error, ")
        where = ".".join(str(part)[:_SHOWN] for part in error["loc"])
        return f"Argument {where!r} of {self._tool}: {what[:1].lower()}{what[1:]}; got {_short(error['input'])}."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _boxes_as_arrays(annotation: Any) -> Any:
    """`Box`, wherever it stands in a type, is the JSON array [x0, y0, x1, y1]."""
    if annotation is Box:
        return Annotated[list[float], Field(min_length=4, max_length=4), AfterValidator(lambda sides: Box(*sides))]
    arguments = tuple(_boxes_as_arrays(a) for a in get_args(annotation))
    origin = get_origin(annotation)
    if arguments == get_args(annotation) or origin is None:
        return annotation
    if origin in (Union, types.UnionType):
        return Union[arguments]  # noqa: UP007 (built from a tuple)
    return Annotated[arguments] if origin is Annotated else origin[arguments]


def _compact(schema: Any) -> Any:
    """Without what tells a model nothing: titles, and the `null` branch of an argument that may be left out."""
    if isinstance(schema, list):
        return [_compact(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):  # here the keys are names, and `title` may be one
            kept[key] = {name: _compact(inner) for name, inner in value.items()}
        elif key in ("default", "enum", "const", "examples"):
            kept[key] = value
        elif key != "title":
            kept[key] = _compact(value)
    if kept.get("default", ...) is None and {"type": "null"} in kept.get("anyOf", ()):
        del kept["default"]
        branches = [branch for branch in kept.pop("anyOf") if branch != {"type": "null"}]
        kept = {**branches[0], **kept} if len(branches) == 1 else {"anyOf": branches, **kept}
    return kept


def _read_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """The description and those of the parameters, each as one line."""
    import griffe  # takes a fifth of a second, which the command line's --help should not pay

    quiet: Any = {style: {"warnings": False} for style in ("google", "numpy", "sphinx")}  # types stand in the signature
    sections = griffe.parse_auto(griffe.Docstring(docstring), method="max_sections", per_style_options=quiet)
    described: dict[str, str] = {}
    texts: list[str] = []
    for section in sections:
        if section.kind is griffe.DocstringSectionKind.text:
            texts.append(section.value)
        elif section.kind is griffe.DocstringSectionKind.parameters:
            described.update({p.name: " ".join(p.description.split()) for p in section.value})
    return " ".join(" ".join(texts).split()), described
