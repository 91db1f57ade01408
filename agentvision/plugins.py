"""Finding tools, policies, rewards and data sources by name: built-ins and yours come in by the same door.

A name is one of three things: an entry point of the group `agentvision.<kind>` (how installed packages offer theirs,
and this one its own), a dotted path `package.module:attribute`, or a file `./path/file.py:attribute`. Loading runs the
code it names; discovery lists entry points, and one that is broken is reported beside the others, not instead of them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agentvision.errors import PluginError, suggest

Kind: TypeAlias = Literal["tools", "policies", "rewards", "data"]


@dataclass(frozen=True, slots=True)
class Discovery:
    """The entry points of one kind: what loaded, by name, and what did not, with the reason."""

    found: Mapping[str, Any] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)


def names(kind: Kind) -> tuple[str, ...]:
    """The names on offer, sorted; nothing is imported."""
    return tuple(sorted(_entries(kind)))


def load(kind: Kind, name: str) -> Any:
    """The object of this name: an entry point's, `package.module:attribute`, or `./file.py:attribute`.

    Raises `PluginError`, which names the nearest that exists, or what broke while it was loaded.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon:
        entries = _entries(kind)
        if name not in entries:
            hint = suggest(name, entries) or " None is installed."
            raise PluginError(
                f"there is no {name!r} among the {kind}.{hint} Your own go by 'package.module:name' or './file.py:name'"
            )
        return _load_entry(kind, entries[name])
    if not where or not attribute:
        raise PluginError(f"{kind}: {name!r} is neither 'package.module:name' nor './file.py:name'")
    module = _from_file(kind, Path(where)) if where.endswith(".py") else _from_path(kind, where, name)
    return _attribute(kind, module, attribute, name)


def discover(kind: Kind) -> Discovery:
    """Load every entry point of a kind."""
    found: dict[str, Any] = {}
    broken: dict[str, str] = {}
    for name, entry in sorted(_entries(kind).items()):
        try:
            found[name] = _load_entry(kind, entry)
        except PluginError as error:
            broken[name] = str(error)
    return Discovery(found, broken)


def _entries(kind: Kind) -> dict[str, EntryPoint]:
    """By name; where two packages offer the same one, this package's own wins, then the first in the alphabet."""
    entries = sorted(
        entry_points(group=f"agentvision.{kind}"),
        key=lambda e: (not e.value.startswith("agentvision."), e.value),
        reverse=True,
    )
    return {entry.name: entry for entry in entries}


def _load_entry(kind: Kind, entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{kind}: {entry.name!r} ({entry.value}) cannot be loaded: {_reason(error)}") from error


def _from_path(kind: Kind, path: str, name: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or path
        if path == missing or path.startswith(f"{missing}."):
            raise PluginError(
                f"{kind}: {name!r}: there is no module {missing!r}; install it, or name a file as './file.py:name'"
            ) from error
        raise PluginError(f"{kind}: {name!r} cannot be loaded: {_reason(error)}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{kind}: {name!r} cannot be loaded: {_reason(error)}") from error


def _from_file(kind: Kind, path: Path) -> Any:
    path = path.expanduser().resolve()
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise PluginError(f"{kind}: there is no file {str(path)!r}.{suggest(path.name, beside)}")
    # Named after its whole path: two files of one name stay apart, and one file is one module however often it is
    # named.
    name = f"agentvision_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{kind}: {str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints inside look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"{kind}: {str(path)!r} cannot be loaded: {_reason(error)}") from error
    return module


def _attribute(kind: Kind, module: Any, attribute: str, name: str) -> Any:
    value = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [n for n in vars(value) if not n.startswith("_")] if hasattr(value, "__dict__") else []
            raise PluginError(f"{kind}: {name!r}: there is no {part!r} in {_where(value)}.{suggest(part, known)}")
        value = getattr(value, part)
    return value


def _where(value: Any) -> str:
    return repr(getattr(value, "__file__", None) or getattr(value, "__name__", value))


def _reason(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, SyntaxError):
        text = f"{error.msg} (line {error.lineno})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
