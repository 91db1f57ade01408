"""Stage 1 of the tiny model: the vision tower alone learns to see, against a linear read-out.

The mean of a cell's visual tokens (four in the original, one in the first view) must tell linearly what stands there: a
shape, large or small writing, its colour, and the characters where they are legible. Small writing is never asked for in
the first view: there the tower learns that it is small, and nothing else. The read-out is thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from agentvision.data.glyphs import ALPHABET
from agentvision.data.scene import CELL_PX, COLOURS, SHAPES, Scene
from agentvision.types import Sample

CHARACTERS = "".join(sorted(set(ALPHABET) | set("0123456789")))
_WHATS = ("nothing", "large writing", "small writing", *SHAPES)
_COLOUR_NAMES = tuple(COLOURS)
_NO_LABEL = -100
_TOKEN_PX = 16


class SceneData(Protocol):
    """A data set of the tiny world."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Sample: ...
    def scene(self, i: int) -> Scene: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Shares of cells read right: `large` and `small` are characters in views where they are legible."""

    what: float
    colour: float
    large: float
    small: float


class ReadOut(nn.Module):
    """Linear maps from a cell's feature (N, D) to what it holds, its colour and its two characters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.what = nn.Linear(dim, len(_WHATS))
        self.colour = nn.Linear(dim, len(_COLOUR_NAMES))
        self.first = nn.Linear(dim, len(CHARACTERS))
        self.last = nn.Linear(dim, len(CHARACTERS))

    def forward(self, cells_ND: Tensor) -> tuple[Tensor, ...]:
        return tuple(head(cells_ND) for head in (self.what, self.colour, self.first, self.last))


def labels(scene: Scene, *, first_view: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(cells, 4): what, colour, first and last character; -100 where there is none or it cannot be read."""
    table = np.full((scene.columns * scene.rows, 4), _NO_LABEL)
    table[:, 0] = 0
    for card in scene.cards:
        table[card.cell, :2] = 1 if card.large else 2, _COLOUR_NAMES.index(card.colour)
        if card.large or not first_view:
            table[card.cell, 2] = CHARACTERS.index(card.text[0])
            table[card.cell, 3] = CHARACTERS.index(card.text[-1])
    for shape in scene.shapes:
        table[shape.cell, :2] = _WHATS.index(shape.kind), _COLOUR_NAMES.index(shape.colour)
    return table


def quarter(image: Image.Image) -> Image.Image:
    """The first view: half of each side, a quarter of the visual tokens."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def cell_features(model: Any, images: Sequence[Image.Image], scenes: Sequence[Scene], processor: Any) -> Tensor:
    """(cells of all images, D): the mean of each cell's visual tokens, for originals and first views alike."""
    made = processor(images=list(images), return_tensors="pt")
    features = model.model.get_image_features(made["pixel_values"], made["image_grid_thw"], return_dict=True).pooler_output
    cells = []
    for feature_MD, image, scene in zip(features, images, scenes, strict=True):
        side = image.width // scene.columns // _TOKEN_PX
        grid = feature_MD.view(scene.rows, side, scene.columns, side, -1)
        cells.append(grid.mean(dim=(1, 3)).flatten(0, 1))
    return torch.cat(cells)


def train_reader(
    model: Any,
    processor: Any,
    data: Sequence[SceneData],
    *,
    steps: int = 600,
    batch: int = 64,
    lr: float = 1.2e-3,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Train the vision tower on scenes drawn from all of `data`, half of them as first views."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    readout = ReadOut(model.config.text_config.hidden_size)
    tower = model.model.visual
    weights = [*tower.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(weights, lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    model.train()
    for step in range(steps):
        images, scenes, targets = _draw(rng, data, batch)
        outputs = readout(cell_features(model, images, scenes, processor))
        losses = [F.cross_entropy(o, t, ignore_index=_NO_LABEL) for o, t in zip(outputs, targets.T, strict=True)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            log(f"reader {step:4d}  loss {loss.item():.3f}  {_reading(outputs, targets)}")


def _draw(
    rng: np.random.Generator, data: Sequence[SceneData], batch: int
) -> tuple[list[Image.Image], list[Scene], Tensor]:
    images, scenes, targets = [], [], []
    for k in range(batch):
        source = data[k % len(data)]
        i = int(rng.integers(len(source)))
        image, scene = source[i].images[0], source.scene(i)
        first_view = bool(rng.random() < 0.5)
        images.append(quarter(image) if first_view else image)
        scenes.append(scene)
        targets.append(labels(scene, first_view=first_view))
    return images, scenes, torch.from_numpy(np.concatenate(targets))


def _reading(outputs: Sequence[Tensor], targets: Tensor) -> Reading:
    right = torch.stack([o.argmax(-1) for o in outputs], dim=1) == targets

    def share(mask: Tensor, columns: slice) -> float:
        chosen = right[mask][:, columns]
        return round(chosen.float().mean().item(), 3)

    legible = targets[:, 2] != _NO_LABEL
    return Reading(
        what=share(targets[:, 0] >= 0, slice(0, 1)),
        colour=share(targets[:, 1] != _NO_LABEL, slice(1, 2)),
        large=share(legible & (targets[:, 0] == 1), slice(2, 4)),
        small=share(legible & (targets[:, 0] == 2), slice(2, 4)),
    )
