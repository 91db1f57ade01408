"""Small files of questions, and what is read off them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from agentvision.data.rows import Rows
from agentvision.recipe import Recipe
from agentvision.recipe.dataset import Fields

VISIONTHINK = Fields.model_validate(
    {
        "question": "problem",
        "images": "images",
        "answer": ["original_answer", "solution"],
        "id": "doc_id",
        "meta": ["info", "data_source"],
    }
)
FILES = "agentvision.data.files:files"


GOOD = {"question": "q", "answer": "a", "image": "a.png"}


def png(colour: str = "red", size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(path: Path, *rows: Any) -> Path:
    (path.parent / "a.png").write_bytes(png())
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def reasons(rows: Rows) -> dict[str, tuple[int, int]]:
    """How many rows each reason left out, and the first of them."""
    return {reason: (len(found), found[0]) for reason, found in rows.left_out.reasons.items()}


def recipe_over(data: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate({"name": "n", "model": {"path": "m"}, "rewards": ["accuracy"], "data": data, **more})
