"""`agentvision tools`: what there is, and what it does to a picture."""

from __future__ import annotations

import inspect
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from agentvision.cli._terminal import printable
from agentvision.errors import PluginError, exception_of

app = cyclopts.App(name="tools", help="List tools, and try one on a picture.")


@app.command(name="list")
def list_tools() -> None:
    """List the tools that can be named in a recipe, and those that are installed but broken."""
    from agentvision import plugins
    from agentvision.tool import Tool, tools_of

    discovered = plugins.discover("tools")
    rows: list[tuple[str, str]] = []
    for name, found in discovered.found.items():
        made = tools_of(found) if isinstance(found, Tool) else ()
        rows += [(_call_of(tool), tool.description) for tool in made] or [(name, "a set of tools, made by the recipe")]
    width = max((len(call) for call, _ in rows), default=0)
    for call, description in rows:
        print(printable(f"{call:<{width}}  {description}"))
    for name, reason in discovered.broken.items():
        print(printable(f"broken: {name}: {reason}"))


@app.command(name="try")
def try_tool(
    tool: str,
    picture: str,
    *arguments: str,
    out: Annotated[Path | None, cyclopts.Parameter(name="--out")] = None,
    first_view: Annotated[float, cyclopts.Parameter(name="--first-view")] = 1.0,
) -> None:
    """Call a tool on a picture and write the picture that it makes.

    Parameters
    ----------
    tool
        Its name, 'package.module:name' or './file.py:name'.
    picture
        The picture, image 1 to the tool: a file, or a data: URL.
    arguments
        The tool's arguments as name=value: JSON, or numbers with commas between (box=10,20,200,200).
    out
        Where to write; by default beside you, under a name that is free.
    first_view
        Scale at which the model is taken to have seen the picture. A box is in that view's pixels; at 1, in the
        picture's own.
    """
    from agentvision import plugins
    from agentvision._workers import run_sync
    from agentvision.compute import VisionSpec
    from agentvision.images import ImageStore
    from agentvision.tool import Tool, ToolContext, call_tool, tools_of
    from agentvision.types import ToolCall
    from agentvision.views import first_view as seen_first
    from agentvision.views import rendered, whole

    found = plugins.load("tools", tool)
    if callable(found) and not isinstance(found, Tool):
        found = _made(found, tool)
    candidates = tools_of(found)
    if len(candidates) != 1:
        known = ", ".join(each.name for each in candidates)
        raise PluginError(f"{tool!r} is a set of tools ({known}); `tools try` takes a single one")
    (chosen,) = candidates

    store, vision = ImageStore(), VisionSpec()
    original = store.load(picture)
    if first_view == 1.0:  # boxes are in the picture's own pixels
        full = store.size(original)
        shown = rendered(store, original, whole(full), full)
    else:
        shown = seen_first(store, original, vision, scale=first_view)
    view = shown.entered(1, source="first_view", store=store, vision=vision)
    call = ToolCall(chosen.name, _parse(arguments))
    outcome = run_sync(lambda: call_tool({chosen.name: chosen}, call, ToolContext({1: view}, store, vision)))
    if outcome.result is None:
        reason = exception_of(outcome.record.detail)
        whole_story = RuntimeError(outcome.record.detail)  # shown with --debug
        raise PluginError(f"{outcome.record.text}{f' ({reason})' if reason else ''}") from whole_story
    if outcome.result.text:
        print(printable(outcome.result.text))
    for new, path in zip(outcome.result.images, _paths(picture, chosen.name, out), strict=False):
        try:
            new.image.save(path)
        except (OSError, ValueError) as error:
            raise PluginError(f"cannot write {str(path)!r}: {error}; end --out in .png") from None
        print(f"{path}  {new.image.width} × {new.image.height} pixels, {vision.tokens(new.image.size)} visual tokens")


def _call_of(tool: Any) -> str:
    """`zoom(box, image=1)`: the way it is called."""
    properties = tool.arguments.schema["properties"]
    required = tool.arguments.schema.get("required", ())
    shown = [name if name in required else f"{name}={p.get('default')}" for name, p in properties.items()]
    return f"{tool.name}({', '.join(shown)})"


def _parse(arguments: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name:
            raise PluginError(f"{argument!r} is not name=value; for example box=10,20,200,200")
        for form in (text, f"[{text}]"):
            try:
                values[name] = json.loads(form)
                break
            except ValueError:
                values[name] = text
    return values


def _made(factory: Any, name: str) -> Any:
    """What a class or function that makes tools makes; a plain function is most likely a tool without its `@tool`."""
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{name!r} is not a tool: put @tool above it (as a maker of tools it would lack: {error})"
        ) from None
    return factory()


def _paths(picture: str, tool: str, out: Path | None) -> Any:
    """One path after another: what `out` names, or names that are free."""
    if out is not None:
        if not picture.startswith("data:") and out.resolve() == Path(picture).resolve():
            raise PluginError(f"--out {str(out)!r} is the picture itself; choose another name")
        if out.exists():
            raise PluginError(f"--out {str(out)!r} is there already; choose another name")
        yield out
        yield from (path for k in itertools.count(2) if not (path := out.with_stem(f"{out.stem}-{k}")).exists())
    stem = "picture" if picture.startswith("data:") else Path(picture).stem
    names = itertools.chain([f"{stem}-{tool}"], (f"{stem}-{tool}-{k}" for k in itertools.count(2)))
    yield from (path for name in names if not (path := Path(f"{name}.png")).exists())
