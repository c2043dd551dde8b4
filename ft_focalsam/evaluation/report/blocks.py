"""What a report is made of, before it is HTML or Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .plots import Drawing


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; a note is set smaller."""

    text: str
    is_note: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column names the row.

    A cell may have a second line: ("81.3", "79.9 to 82.6"). With a `fold`, the table is shown on demand, under that
    title.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    fold: str | None = None


@dataclass(frozen=True)
class Plot:
    """A drawing, what it shows in words for those who cannot see it, and a caption."""

    draw: Drawing
    description: str
    caption: str


@dataclass(frozen=True)
class Examples:
    """Pictures under a title, each with a caption."""

    title: str
    pictures: Sequence[tuple[Image.Image, str]]


Block = Heading | Text | Table | Plot | Examples
