"""What a report is made of, before it is HTML or Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .formats import Cell
from .plots import Drawing


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's own, and those of level 2 are its navigation."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; a note is set smaller, the lead larger."""

    text: str
    is_note: bool = False
    is_lead: bool = False


@dataclass(frozen=True)
class Warnings:
    """What a reader has to know, one sentence each."""

    sentences: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column names the row.

    A cell may have a second line: ("81.3", "79.9 to 82.6"). With a `fold`, the table is shown on demand, under that
    title; one that is sortable is sorted by a click on a column's title.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    fold: str | None = None
    is_sortable: bool = False

    @property
    def are_words(self) -> list[bool]:
        """Of each column, whether its cells are words and not numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [() for _ in self.header]
        return [any(isinstance(cell, str) and cell[:1].isalpha() for cell in column) for column in columns]


@dataclass(frozen=True)
class Confusions:
    """A confusion matrix: images by class (row) and by what they are taken for (column), shape (C, C)."""

    class_names: Sequence[str]
    counts: np.ndarray


@dataclass(frozen=True)
class Plot:
    """A drawing, what it shows in words for those who cannot see it, and a caption."""

    draw: Drawing
    description: str
    caption: str


@dataclass(frozen=True)
class Example:
    """An image, the end of its path ("class/file.png") or its row, and a caption."""

    image: Image.Image
    name: str
    caption: str


@dataclass(frozen=True)
class Examples:
    """Images under a title."""

    title: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class SideBySide:
    """Blocks beside each other where there is room."""

    blocks: Sequence["Block"]


@dataclass(frozen=True)
class Footer:
    """The last line: when and by what the report was written."""

    text: str


Block = Heading | Text | Warnings | Facts | Table | Confusions | Plot | Examples | SideBySide | Footer
