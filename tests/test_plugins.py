"""Plug-ins come by entry point, dotted path or file; a broken one is named."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from agentvision import plugins
from agentvision.errors import PluginError
from agentvision.tools import crop


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "agentvision.tools")


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    known = [entry("crop", "agentvision.tools.crop:crop"), entry("zoom", "agentvision.tools.zoom:zoom")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: known if group == "agentvision.tools" else [])
    return known


def test_the_packages_own_tools_are_entry_points():
    assert {"crop", "resize_image", "zoom"} <= set(plugins.names("tools"))
    assert plugins.load("tools", "crop") is crop


def test_an_unknown_name_suggests_the_nearest(entries: list[EntryPoint]):
    with pytest.raises(PluginError, match=r"no 'crob' among the tools. Did you mean 'crop'"):
        plugins.load("tools", "crob")
    with pytest.raises(PluginError, match="None is installed"):
        plugins.load("rewards", "x")


def test_a_broken_plugin_is_named_and_does_not_break_the_rest(entries: list[EntryPoint]):
    entries += [entry("bad", "agentvision_no_such_module:x"), entry("worse", "agentvision.tools.crop:missing")]
    discovered = plugins.discover("tools")
    assert set(discovered.found) == {"crop", "zoom"} and set(discovered.broken) == {"bad", "worse"}
    assert "agentvision_no_such_module" in discovered.broken["bad"]
    assert plugins.names("tools") == ("bad", "crop", "worse", "zoom")
    with pytest.raises(PluginError, match=r"'bad'.*ModuleNotFoundError"):
        plugins.load("tools", "bad")


def test_nobody_replaces_the_packages_own(entries: list[EntryPoint]):
    entries += [entry("crop", "aaa_other:crop"), entry("crop", "zzz_other:crop")]
    assert plugins.load("tools", "crop") is crop


def test_dotted_paths():
    assert plugins.load("tools", "agentvision.tools.crop:crop") is crop
    assert plugins.load("tools", "agentvision.tools:crop.name") == "crop"
    with pytest.raises(PluginError, match=r"no module 'agentvision.toolz'"):
        plugins.load("tools", "agentvision.toolz:crop")
    with pytest.raises(PluginError, match=r"no 'crob' in .*Did you mean 'crop'"):
        plugins.load("tools", "agentvision.tools:crob")
    for name in (":x", "x:", ":"):
        with pytest.raises(PluginError, match="neither"):
            plugins.load("tools", name)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Thing:\n    size: int = 3\n"
    )
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.py").write_text("class Thing:\n    size = 4\n")
    monkeypatch.chdir(tmp_path)
    first = plugins.load("rewards", "./mine.py:Thing")
    assert first().size == 3
    assert plugins.load("rewards", str(tmp_path / "mine.py") + ":Thing") is first
    assert plugins.load("rewards", "deep/mine.py:Thing").size == 4
    with pytest.raises(PluginError, match=r"Did you mean 'mine.py'"):
        plugins.load("rewards", "./mime.py:Thing")
    with pytest.raises(PluginError, match="Did you mean 'Thing'"):
        plugins.load("rewards", "./mine.py:Thin")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def broken(:", r"SyntaxError: .*line 1"),
        ("raise OSError('no disk')", "OSError: no disk"),
        ("import nowhere_x", "nowhere_x"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why_and_leaves_nothing(tmp_path: Path, source: str, reason: str):
    (tmp_path / "bad.py").write_text(source)
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(PluginError, match=reason):
            plugins.load("tools", f"{tmp_path}/bad.py:x")
    assert not {name for name in set(sys.modules) - before if "bad" in name}


def test_a_module_whose_own_import_fails_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "half_there.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"cannot be loaded.*not_there_at_all"):
        plugins.load("data", "half_there:x")
