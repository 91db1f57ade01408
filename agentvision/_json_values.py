"""Frozen dataclasses to JSON values and back, so that what is read equals what was written.

The types are the schema: an encoder and a decoder are compiled once from a dataclass's annotations (tuples, mappings,
enums, optionals, unions of dataclasses, which carry their class's name as `type`). Where an annotation says `Any`,
values that JSON lacks travel as `{"$": kind, "v": …}`: tuples, bytes, sets, non-finite floats, mappings with other keys
than strings. What is none of these is kept as its `repr`, because a log must not kill the run that it is about.
"""

from __future__ import annotations

import base64
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

_TAG = "$"

Codec = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""(encode, decode)."""


def encode_any(value: Any) -> Any:
    """A value of no declared type as JSON; the inverse is `decode_any`."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {_TAG: "float", "v": repr(number)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _TAG not in value:
            return {str(key): encode_any(item) for key, item in value.items()}
        return {_TAG: "dict", "v": [[encode_any(key), encode_any(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [encode_any(item) for item in value]
    if isinstance(value, tuple):
        return {_TAG: "tuple", "v": [encode_any(item) for item in value]}
    if isinstance(value, (set, frozenset)):
        return {_TAG: type(value).__name__, "v": sorted((encode_any(item) for item in value), key=repr)}
    if isinstance(value, (bytes, bytearray)):
        return {_TAG: "bytes", "v": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, (str, int)):  # their subclasses, after the enums
        return str(value) if isinstance(value, str) else int(value)
    return repr(value)


def decode_any(value: Any) -> Any:
    """What `encode_any` wrote. Raises `ValueError` for a tag that it never writes."""
    if isinstance(value, list):
        return [decode_any(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: decode_any(item) for key, item in value.items()}
    kind, inner = value[_TAG], value["v"]
    if kind == "float":
        return float(inner)
    if kind == "bytes":
        return base64.b64decode(inner)
    if kind == "dict":
        return {decode_any(key): decode_any(item) for key, item in inner}
    made = {"tuple": tuple, "set": set, "frozenset": frozenset}.get(kind)
    if made is None:
        raise ValueError(f"unknown tag {kind!r}")
    return made(decode_any(item) for item in inner)


@cache
def codec(hint: Any) -> Codec:
    """Encoder and decoder of a type: a dataclass, or anything that annotates a field of one."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return _dataclass_codec(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return (lambda member: member.value), hint
    if origin in (typing.Union, types.UnionType):
        return _union_codec(args)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        encode, decode = codec(args[0])
        if args[0] in (int, str):  # token ids: nothing to convert, and most of what is written
            return list, tuple
        return (lambda items: [encode(x) for x in items]), (lambda items: tuple(decode(x) for x in items))
    if origin is tuple:
        parts = [codec(arg) for arg in args]
        return (
            lambda items: [part[0](x) for part, x in zip(parts, items, strict=True)],
            lambda items: tuple(part[1](x) for part, x in zip(parts, items, strict=True)),
        )
    if isinstance(origin, type) and issubclass(origin, Mapping) and args[0] is str and args[1] is not Any:
        encode, decode = codec(args[1])
        return (
            lambda items: {key: encode(x) for key, x in items.items()},
            lambda items: {key: decode(x) for key, x in items.items()},
        )
    return encode_any, decode_any


def _dataclass_codec(cls: type) -> Codec:
    hints = typing.get_type_hints(cls)
    parts = {f.name: codec(hints[f.name]) for f in fields(cls)}

    def encode(value: Any) -> dict[str, Any]:
        return {name: part[0](getattr(value, name)) for name, part in parts.items()}

    def decode(data: Mapping[str, Any]) -> Any:
        unknown = set(data) - set(parts) - {"type"}
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}")
        return cls(**{name: parts[name][1](item) for name, item in data.items() if name in parts})

    return encode, decode


def _union_codec(args: Sequence[Any]) -> Codec:
    classes: dict[str, type] = {arg.__name__: arg for arg in args if isinstance(arg, type) and is_dataclass(arg)}
    if not classes:
        inner = [arg for arg in args if arg is not type(None)]
        encode, decode = codec(inner[0]) if len(inner) == 1 else (encode_any, decode_any)
        return (lambda x: None if x is None else encode(x)), (lambda x: None if x is None else decode(x))
    codecs = {name: codec(cls) for name, cls in classes.items()}

    def encode_union(value: Any) -> Any:
        name = type(value).__name__
        if name not in codecs:
            return encode_any(value)
        body = codecs[name][0](value)
        return body if len(codecs) == 1 else {"type": name, **body}

    def decode_union(data: Any) -> Any:
        if not isinstance(data, dict):
            return decode_any(data)
        name = data["type"] if len(codecs) > 1 else next(iter(codecs))
        if name not in codecs:
            raise ValueError(f"unknown type {name!r}")
        return codecs[name][1](data)

    return encode_union, decode_union
