"""Modules that can be called.

`from agentvision import tool, train, evaluate` are functions of the public API, and `agentvision.tool`, `agentvision.train`
and `agentvision.evaluate` are modules with more in them. Python keeps one value under one name, whichever was imported
last; so these modules are made callable, and both readings hold in any order of imports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def callable_module(name: str, function: Callable[..., Any]) -> None:
    """Make `sys.modules[name](…)` call `function`."""
    cls = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function), "__doc__": function.__doc__})
    sys.modules[name].__class__ = cls
