"""`agentvision run`: one question about one image, turn by turn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agentvision.cli._options import Seed
from agentvision.cli._terminal import printable
from agentvision.errors import ModelError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from agentvision.agent import Answer


def run(
    recipe: str,
    image: str,
    question: str,
    *overrides: str,
    profile: str | None = None,
    model: str | None = None,
    seed: Seed = None,
    out: Path | None = None,
) -> None:
    """Ask one question about one image, print every turn, and save what the model saw.

    Parameters
    ----------
    recipe
        Name of a recipe that ships with the package, or a path.
    image
        The picture: a file, or a data: URL.
    question
        What to ask.
    overrides
        Values of the recipe to change, `key.path=value`.
    profile
        A profile of the recipe, such as `tiny`.
    model
        A folder or hub id in place of the recipe's model, such as `runs/demo/export`, or a server's name of one.
    seed
        Seeds sampling, where the recipe's evaluation samples; by default the recipe's seed.
    out
        Folder for the views (`view_1.png`, …) and the episode's journal; without it nothing is saved.
    """
    from agentvision.recipe import load_recipe

    loaded = load_recipe(recipe, profile=profile, overrides=overrides)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is there already and is not overwritten; choose a new --out")
    from rich.console import Console

    from agentvision.agent import Agent
    from agentvision.images import open_image

    open_image(image)  # an unreadable picture is known before a model is loaded
    answer = Agent.from_recipe(loaded, model=model).run_sync(image, question, seed=seed)
    _show(answer, Console(highlight=False, soft_wrap=True))
    if out is not None:
        for path in _save(answer, image, out):
            print(path)
    if answer.trajectory.error:
        raise ModelError(f"the episode ended in {answer.stop.value!r}: {answer.trajectory.error.splitlines()[0]}")
    if answer.text is None:
        print(f"no answer: {answer.stop.value.replace('_', ' ')}", file=sys.stderr)
        sys.exit(1)


def _show(answer: Answer, console: Console) -> None:
    """The conversation after the system turn; the model's text is printed as it is, never as markup."""
    from rich.rule import Rule
    from rich.text import Text

    trajectory = answer.trajectory
    views = {view.index: view for view in trajectory.views}
    turns = iter(trajectory.turns)
    for message in trajectory.messages:
        if message.role == "system":
            continue
        turn = next(turns, None) if message.role == "assistant" else None
        title = "model" if message.role == "assistant" else message.role
        if turn is not None and turn.tokens:
            title += f" · {turn.tokens} tokens"
        console.print(Rule(Text(title, style="bold"), align="left", style="dim"))
        for part in message.parts:
            if isinstance(part, str):
                console.print(Text(printable(part)), end="")
            else:
                view = views[part.view]
                size = f"{view.size[0]}×{view.size[1]} px, {view.tokens} tokens"
                console.print(Text(f"[view {view.index}: {view.source}, {size}]", style="cyan"))
        console.print()
        if turn is not None and turn.parsed.problem is not None:
            console.print(Text(f"not in the grammar: {turn.parsed.problem.value}", style="red"))
        if turn is not None and turn.tool is not None and turn.tool.error is not None:
            console.print(Text(f"{turn.tool.call.name}: {turn.tool.error.value}", style="red"))
    console.print(Rule(style="dim"))
    spent = f"{trajectory.visual_tokens_additive} visual tokens (full resolution: {trajectory.full_tokens})"
    console.print(Text(f"{spent}, {trajectory.sampled_tokens} written, {trajectory.seconds:.2f} s", style="dim"))
    if answer.text is not None:
        console.print(Text(f"answer: {printable(answer.text)}", style="bold green"))


def _save(answer: Answer, image: str, out: Path) -> list[Path]:
    """The views as PNG files, and the episode as a journal that `agentvision report` can show."""
    from agentvision.images import ImageStore
    from agentvision.journal import Journal

    store = ImageStore()
    store.load(image)
    for view in answer.images.values():
        store.add(view)
    with Journal(out) as journal:
        journal.append([answer.trajectory], step=0, store=store)
    paths = [out / f"view_{index}.png" for index in sorted(answer.images)]
    for path, index in zip(paths, sorted(answer.images), strict=True):
        answer.images[index].save(path)
    return paths
