"""VisionThink's data sets as they are stored: sizes, splits of Smart-Train, bad rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agentvision.compute import VisionSpec
from agentvision.data import open_questions
from agentvision.data.visionthink import MAX_PIXELS, MIN_PIXELS, visionthink
from agentvision.env import FirstView, VisionEnv
from agentvision.images import ImageStore, open_image
from agentvision.protocol import Protocol
from agentvision.recipe import load_recipe
from agentvision.recipe.dataset import Fields
from agentvision.types import Resized, Sample


def jpeg(size: tuple[int, int], colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def row(size: tuple[int, int] = (64, 48), **more: Any) -> dict[str, Any]:
    return {
        "problem": "<image>What is it?",
        "images": {"bytes": jpeg(size), "path": None},
        "original_answer": "a",
        "info": {"tgt_width": 56, "tgt_height": 84, "use_tool": True},
        "data_source": "open_source_require_high",
        "doc_id": "d",
        **more,
    }


def saved(folder: Path, rows: list[dict[str, Any]]) -> str:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return str(folder)


async def sizes(sample: Sample, scale: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the first view, and of the original behind it."""
    env = VisionEnv(
        tools=[],
        vision=VisionSpec(),
        store=ImageStore(),
        protocol=Protocol(),
        first_view=FirstView(scale),
    )
    await env.reset(sample, seed=0)
    (view,) = env.views
    return view.size, view.original_size


async def test_the_first_view_has_the_target_size_and_the_whole_twice_its_sides(tmp_path: Path) -> None:
    (sample,) = visionthink(path=saved(tmp_path / "set", [row()]))
    assert await sizes(sample, 0.5) == ((56, 84), (112, 168))
    assert await sizes(sample, 1.0) == ((112, 168), (112, 168))


@pytest.mark.parametrize(
    ("size", "full"),
    [
        ((300, 200), (627, 418)),  # enlarged to 512² pixels
        ((1000, 800), (1000, 800)),  # as it is
        ((3000, 2000), (2508, 1672)),  # reduced to 2048² pixels
    ],
)
async def test_a_row_without_a_target_is_brought_between_two_areas(
    tmp_path: Path, size: tuple[int, int], full: tuple[int, int]
) -> None:
    (sample,) = visionthink(path=saved(tmp_path / "set", [row(size, info=None)]))
    low, high = await sizes(sample, 0.5)
    assert high == full
    assert MIN_PIXELS * 0.99 <= full[0] * full[1] <= MAX_PIXELS * 1.01
    assert low == VisionSpec().fit((full[0] // 2, full[1] // 2))


def test_what_the_source_of_a_row_says_of_it(tmp_path: Path) -> None:
    sources = ["open_source_require_high", "open_source_no_require_high", "open_source", "open_source_rulebase", None]
    rows = visionthink(path=saved(tmp_path / "set", [row(data_source=source) for source in sources]))
    assert [sample.meta.get("needs_original") for sample in rows] == [True, False, None, None, None]
    assert [sample.id for sample in rows] == ["d", "d#2", "d#3", "d#4", "d#5"]
    assert rows[0].meta["info"]["use_tool"] is True


def test_rows_whose_target_is_no_size_are_left_out(tmp_path: Path) -> None:
    targets = [(56, 84), (0, 84), (None, 84), (None, None), (-1, -1), (2048, 2049)]
    rows = [row(info={"tgt_width": w, "tgt_height": h}) for w, h in targets]
    found = visionthink(path=saved(tmp_path / "set", rows))
    assert [image.size for sample in found for image in sample.images] == [(112, 168), None]
    assert {reason: list(numbers) for reason, numbers in found.left_out.reasons.items()} == {
        "info.tgt_width and info.tgt_height are not both whole numbers above 0": [2, 3, 5],
        "the target size has more than 4,194,304 pixels": [6],
    }


def test_the_recipe_reads_it_and_holds_some_of_it_out(tmp_path: Path) -> None:
    rows = [row(images={"bytes": jpeg((64, 8 * i + 8)), "path": None}) for i in range(60)]
    data = {"data.path": saved(tmp_path / "set", rows), "data.options.holdout": 0.3}
    recipe = load_recipe("visionthink", overrides=data | {"data.eval.path": None, "data.eval.split": None})
    train, held = open_questions(recipe, "train"), open_questions(recipe, "eval")
    assert len(train) + len(held) == 60 and len(held) > 0
    assert isinstance(held[0].images[0], Resized)


def test_columns_of_another_name_may_be_given(tmp_path: Path) -> None:
    other = {"question" if key == "problem" else key: value for key, value in row().items()}
    (sample,) = visionthink(
        path=saved(tmp_path / "set", [other]), fields=Fields(question=("question",), answer=("original_answer",))
    )
    assert open_image(sample.images[0]).size == (112, 168)
