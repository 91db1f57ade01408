"""`agentvision data`: what is in a data set, what is wrong with it, and new sets made of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cyclopts

from agentvision.cli._options import AsJson, Flag
from agentvision.cli._terminal import printable, progress

app = cyclopts.App(name="data", help="Check and look at data sets, split one into easy and hard, write GlyphVQA.")


@app.command
def check(
    target: str,
    *overrides: str,
    profile: str | None = None,
    n: int | None = None,
    headers_only: Flag = False,
    json_: AsJson = False,
) -> None:
    """Check a data set: rows, pictures, token budgets, duplicates, and leaks between its splits.

    Exit code 1 when there are errors: rows that are no questions, pictures that cannot be read or shown, questions or
    pictures that stand in two splits.

    Parameters
    ----------
    target
        A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow) or a folder; {split} in it stands for any split. Or a recipe,
        whose questions to train on and to evaluate on are checked.
    overrides
        Values of the recipe to change, or of the one that a file is read by: data.fields.question=text.
    profile
        A profile of the recipe.
    n
        Look at so many questions of each split; by default at all.
    headers_only
        Read no more of a picture than its header: faster, but one that is cut short is not found.
    json
        Print the whole report as JSON.
    """
    from agentvision import build
    from agentvision.cli._target import open_target
    from agentvision.data.check import check_sets, lines

    found = open_target(target, overrides=overrides, profile=profile)
    total = sum(len(rows) if n is None else min(n, len(rows)) for rows in found.sets.values())
    with progress() as bar:
        task = bar.add_task("looking at pictures", total=total)
        report = check_sets(
            found.sets,
            vision=build.vision_of(found.recipe),
            scale=found.recipe.env.first_view.scale,
            context_tokens=found.recipe.sampling.context_tokens,
            decode=not headers_only,
            limit=n,
            on_done=lambda done: bar.advance(task, done),
        )
    if json_:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        for line in lines(report):
            print(printable(line))
    if report.errors:
        sys.exit(1)


@app.command
def show(
    target: str,
    *overrides: str,
    profile: str | None = None,
    n: int = 24,
    seed: int = 0,
    out: Path = Path("sheet.html"),
) -> None:
    """Write a contact sheet: questions with their pictures as they are first seen, on one page that needs no network.

    Parameters
    ----------
    target
        A file, a folder or a recipe, as for `data check`.
    overrides
        Values of the recipe to change, or of the one that a file is read by: data.fields.question=text.
    profile
        A profile of the recipe.
    n
        Questions of each split.
    seed
        Draws them.
    out
        The page.
    """
    from agentvision import build
    from agentvision.cli._target import open_target
    from agentvision.data.sheet import write_sheet

    found = open_target(target, overrides=overrides, profile=profile)
    scale = found.recipe.env.first_view.scale
    print(
        write_sheet(
            found.sets, out, title=found.name, vision=build.vision_of(found.recipe), scale=scale, n=n, seed=seed
        )
    )


@app.command
def split(
    target: str,
    *overrides: str,
    out: Path,
    profile: str | None = None,
    n: int = 8,
    margin: int | None = None,
    limit: int | None = None,
    balance: Flag = False,
) -> None:
    """Split questions into easy and hard by asking a policy: what it answers from the first view, what only in full.

    Easy is right n of n times at both resolutions; hard is right more often in full by the margin; the rest is dropped.
    Writes train.jsonl, marked by needs_original, with pictures and a report. Called again, it goes on where it was cut off.

    Parameters
    ----------
    target
        A recipe, whose questions to train on are split; or a file or folder, whose first split is, with the recipe
        `visionthink` around it.
    overrides
        Values of the recipe to change: model.path=…, policy.backend=…, env.first_view.scale=0.5.
    out
        Folder for the result.
    profile
        A profile of the recipe.
    n
        Times that a question is asked at each resolution.
    margin
        Right answers more in full that make a question hard; by default 6 of 8, in proportion.
    limit
        Ask so many questions; by default all.
    balance
        Cut the larger half to the size of the smaller.
    """
    from agentvision.cli._target import open_to_split
    from agentvision.data.split import QUESTIONS, split_questions

    recipe, questions = open_to_split(target, overrides=overrides, profile=profile)
    with progress() as bar:
        task = bar.add_task("questions", total=len(questions) if limit is None else min(limit, len(questions)))
        report = split_questions(
            recipe,
            questions,
            out,
            n=n,
            margin=margin,
            limit=limit,
            balance=balance,
            on_done=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(f"{report.questions:,} questions: {report.easy:,} easy, {report.hard:,} hard")
    for reason, count in report.dropped.items():
        print(f"  dropped {count:,}: {reason}")
    if report.labels:
        print(f"  against the labels of the source: {', '.join(f'{k} {v}' for k, v in report.labels.items())}")
    print(f"{out / QUESTIONS}: {report.written:,} questions")
    print(f"data: {{source: files, path: {out / QUESTIONS}, options: {{holdout: 0.05}}}}")


@app.command
def glyphs(
    *,
    out: Path,
    n: int = 1000,
    split: str = "train",
    seed: int = 0,
    hard_share: float = 0.5,
    columns: int | None = None,
    rows: int | None = None,
) -> None:
    """Write questions of GlyphVQA to disk, as a data set that the source `files` reads.

    Parameters
    ----------
    out
        Folder; the questions go to SPLIT.jsonl, their pictures to images/.
    n
        Questions.
    split
        train or test; their pictures differ by construction.
    seed
        Picks the questions.
    hard_share
        Share of the questions that need the original.
    columns
        Cells of a picture from left to right.
    rows
        Cells from top to bottom.
    """
    from typing import Any, cast

    from agentvision.data.glyphs import GlyphVQA
    from agentvision.data.write import write_samples

    grid: dict[str, Any] = {
        key: value for key, value in {"columns": columns, "rows": rows}.items() if value is not None
    }
    questions = GlyphVQA(split=cast("Any", split), seed=seed, size=n, hard_share=hard_share, **grid)
    path = out / f"{split}.jsonl"
    with progress() as bar:
        count = write_samples(bar.track(iter(questions), total=n, description="questions"), path)
    fields = ", ".join(questions[0].meta) if count else ""
    print(f"{path}: {count:,} questions")
    print(f"data: {{source: files, path: {out}/{{split}}.jsonl, fields: {{meta: [{fields}]}}}}")
