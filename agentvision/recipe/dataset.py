"""The recipe's `data`: where the questions of training and of evaluation come from."""

from __future__ import annotations

from pydantic import Field, JsonValue

from agentvision.recipe.parts import Columns, Name, PositiveInt, Section, Share


class Fields(Section):
    """Which column of a data set holds what.

    A list is tried in order: the first that is there and not empty counts. `[]` says that it is not needed.
    """

    question: Columns = ("question", "problem")
    """The question's text; `<image>` in it marks an image's place."""
    images: Columns = ("images", "image")
    """One image or a list of them."""
    answer: Columns = ("answer", "original_answer", "solution")
    """The ground truth."""
    id: Columns = ("id", "doc_id")
    """The row's name; repeated names are numbered, missing ones are the row's index."""
    meta: Columns = ("needs_original",)
    """Columns carried along in `Sample.meta`; those that are not there are left out."""


class Split(Section):
    """One set of questions. What is left out is inherited from `data`."""

    source: Name | None = None
    """A data plug-in. None: `data.source`."""
    path: str | None = None
    """A file, a folder or an id on the Hub, for sources that read one. None: `data.path`."""
    split: Name | None = None
    """The split's name in the source. None: `train` for training, `test` for evaluation."""
    limit: PositiveInt | None = None
    """Use at most so many questions. None: all there are."""
    fields: Fields | None = None
    """Columns of the source. None: `data.fields`."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keyword arguments of the source; laid over `data.options`."""


class Data(Section):
    """Where questions come from. `source`, `path`, `fields` and `options` here are the defaults of both splits."""

    source: Name
    """A data plug-in: `glyphs` and `handwriting` are synthetic, `files` reads local files, `hub` Hugging Face's Hub,
    `visionthink` VisionThink's data sets."""
    path: str | None = None
    """A file, a folder or an id on the Hub, for sources that read one."""
    fields: Fields = Fields()
    """Columns of the source, for sources that have columns."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keyword arguments of the source."""
    max_bad_share: Share = 0.05
    """Share of rows that may be no questions, or have pictures that cannot be read, above which nothing is run."""
    train: Split = Split()
    """Questions to train on."""
    eval: Split = Split()
    """Held-out questions."""
