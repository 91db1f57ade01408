"""Stage 1 of the tiny model: the vision tower alone learns to see, against a linear read-out.

Each visual token of a cell (four in the original, one in the first view) must name, in the language model's own
embeddings, what stands there: a shape or a card, its colour, large or small writing, and the characters where they are legible.
Small writing is never asked for in the first view: there the tower learns that it is small, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from agentvision.data.glyphs import ALPHABET
from agentvision.data.scene import COLOURS, SHAPES, Scene
from agentvision.types import Sample

CHARACTERS = "".join(sorted(set(ALPHABET) | set("0123456789")))
_COLOUR_NAMES = tuple(COLOURS)
_NO_LABEL = -100
_FIRST = 3
"""Column of the first character in a table of labels."""
_NORM_COST = 1e-3
_TOKEN_PX = 16


class SceneData(Protocol):
    """A data set of the tiny world."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Sample: ...
    def scene(self, i: int) -> Scene: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Shares of tokens read right: `large` and `small` are characters in views where they are legible."""

    what: float
    colour: float
    size: float
    large: float
    small: float


class ReadOut(nn.Module):
    """Words that a token's feature (N, D) must name, by its product with their embeddings.

    The embeddings stay as they were drawn, and so does the rotation under which the second character is named, which tells
    it from the first. So what the tower says of a red card points the way the word " red" does, and the language model
    need not learn a dictionary.
    """

    what: Tensor
    colour: Tensor
    size: Tensor
    characters: Tensor
    rotation: Tensor

    def __init__(self, embedding: Tensor, tokenizer: Any, *, seed: int) -> None:
        super().__init__()

        def words(texts: Sequence[str]) -> Tensor:
            ids = [tokenizer(text).input_ids for text in texts]
            if any(len(pieces) > 1 for pieces in ids):
                raise ValueError(f"not every one of {texts!r} is a single token")
            return torch.stack([embedding[pieces[0]] for pieces in ids])

        self.register_buffer("what", words([" card", *(f" {shape}" for shape in SHAPES)]))
        self.register_buffer("colour", words([f" {colour}" for colour in COLOURS]))
        self.register_buffer("size", words([" small", " large"]))
        self.register_buffer("characters", words(CHARACTERS))
        side = embedding.shape[1]
        rotation = torch.linalg.qr(torch.randn(side, side, generator=torch.Generator().manual_seed(seed)))[0]
        self.register_buffer("rotation", rotation)
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, tokens_ND: Tensor) -> tuple[Tensor, ...]:
        said = tokens_ND * self.log_scale.exp()
        second = said @ self.rotation
        return (
            said @ self.what.T,
            said @ self.colour.T,
            said @ self.size.T,
            said @ self.characters.T,
            second @ self.characters.T,
        )


def labels(scene: Scene, *, first_view: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(cells, 5): what, colour, size, first and last character; -100 where there is none or it cannot be read."""
    table = np.full((scene.columns * scene.rows, 5), _NO_LABEL)
    for card in scene.cards:
        table[card.cell, :3] = 0, _COLOUR_NAMES.index(card.colour), int(card.large)
        if card.large or not first_view:
            table[card.cell, 3:] = CHARACTERS.index(card.text[0]), CHARACTERS.index(card.text[-1])
    for shape in scene.shapes:
        table[shape.cell, :2] = 1 + SHAPES.index(shape.kind), _COLOUR_NAMES.index(shape.colour)
    return table


def picture(sample: Sample) -> Image.Image:
    """The picture of a sample of the tiny world, which is always drawn already."""
    return cast("Image.Image", sample.images[0])


def quarter(image: Image.Image) -> Image.Image:
    """The first view: half of each side, a quarter of the visual tokens."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def token_features(
    model: Any, images: Sequence[Image.Image], scenes: Sequence[Scene], processor: Any
) -> tuple[Tensor, Tensor]:
    """Every visual token of the images, (tokens, D), and the cell that each stands in, counted over all scenes."""
    made = processor(images=list(images), return_tensors="pt")
    found = model.model.get_image_features(made["pixel_values"], made["image_grid_thw"], return_dict=True)
    cells, first = [], 0
    for image, scene in zip(images, scenes, strict=True):
        side = image.width // scene.columns // _TOKEN_PX
        numbers = torch.arange(scene.columns * scene.rows).view(scene.rows, scene.columns) + first
        cells.append(numbers.repeat_interleave(side, 0).repeat_interleave(side, 1).flatten())
        first += numbers.numel()
    return torch.cat(list(found.pooler_output)), torch.cat(cells)


def train_reader(
    model: Any,
    tokenizer: Any,
    processor: Any,
    data: Sequence[SceneData],
    *,
    steps: int = 600,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Train the vision tower on scenes drawn from all of `data`, half of them as first views."""
    rng = np.random.default_rng(seed)
    readout = ReadOut(model.get_input_embeddings().weight.detach(), tokenizer, seed=seed)
    weights = [*model.model.visual.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(weights, lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    model.train()
    for step in range(steps):
        images, scenes, targets = _draw(rng, data, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            features, cells = token_features(model, images, scenes, processor)
        features, targets = features.float(), targets[cells]
        outputs = readout(features)
        loss = _loss(outputs, targets) + _NORM_COST * features.square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            norm = features.detach().norm(dim=-1).mean()
            log(f"reader {step:4d}  loss {loss.item():.3f}  norm {norm:.1f}  {_reading(outputs, targets)}")


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware, ten times as fast as float32."""
    return torch.cpu._is_amx_tile_supported()


def _loss(outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
    """The sum of the heads' cross-entropies; large and small writing count the same."""
    large = targets[:, 2] == 1
    parts = []
    for head, (output, target) in enumerate(zip(outputs, targets.T, strict=True)):
        for mask in (large, ~large) if head >= _FIRST else (torch.ones_like(large),):
            parts.append(F.cross_entropy(output[mask], target[mask], ignore_index=_NO_LABEL))
    return torch.stack(parts).sum()


def _draw(
    rng: np.random.Generator, data: Sequence[SceneData], batch: int
) -> tuple[list[Image.Image], list[Scene], Tensor]:
    images, scenes, targets = [], [], []
    for k in range(batch):
        source = data[k % len(data)]
        i = int(rng.integers(len(source)))
        image, scene = picture(source[i]), source.scene(i)
        first_view = bool(rng.random() < 0.5)
        images.append(quarter(image) if first_view else image)
        scenes.append(scene)
        targets.append(labels(scene, first_view=first_view))
    return images, scenes, torch.from_numpy(np.concatenate(targets))


def _reading(outputs: Sequence[Tensor], targets: Tensor) -> Reading:
    right = torch.stack([o.argmax(-1) for o in outputs], dim=1) == targets

    def share(mask: Tensor, columns: slice) -> float:
        return round(right[mask][:, columns].float().mean().item(), 3)

    legible = targets[:, _FIRST] != _NO_LABEL
    return Reading(
        what=share(targets[:, 0] != _NO_LABEL, slice(0, 1)),
        colour=share(targets[:, 1] != _NO_LABEL, slice(1, 2)),
        size=share(targets[:, 2] != _NO_LABEL, slice(2, 3)),
        large=share(legible & (targets[:, 2] == 1), slice(_FIRST, None)),
        small=share(legible & (targets[:, 2] == 0), slice(_FIRST, None)),
    )
