"""A report as Markdown, with its drawings and images in a folder beside it."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...base.errors import printable
from .blocks import Block, Confusions, Examples, Facts, Footer, Heading, Plot, SideBySide, Table, Text, Warnings
from .formats import Cell
from .images import THUMBNAIL, scaled
from .plots import LIGHT, colors_of

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
_LIST = re.compile(r"^(\d*)([-+=.)])(?= |[-=]*$)")  # begins a list, underlines a heading, or draws a line


def write_markdown(path: Path, blocks: Iterable[Block], *, folder: str) -> None:
    """Write a report.

    Args:
        path (`Path`): The Markdown file.
        blocks (iterable of blocks): The report.
        folder (`str`): Name of the folder beside it that its images go to.
    """
    (path.parent / folder).mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(
        part for index, block in enumerate(blocks) for part in _parts(block, path.parent, folder, f"{index:02}")
    )
    path.write_text(text + "\n", encoding="utf-8")


def _parts(block: Block, root: Path, folder: str, name: str) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"{'#' * block.level} {escape_markdown(block.text)}"
    elif isinstance(block, (Text, Footer)):
        yield escape_markdown(block.text)
    elif isinstance(block, Warnings):
        yield from map(escape_markdown, block.sentences)
    elif isinstance(block, Facts):
        yield markdown_table(Table(("setting", "value"), block.pairs))
    elif isinstance(block, Table):
        if block.fold is not None:
            yield escape_markdown(block.fold)
        yield markdown_table(block)
    elif isinstance(block, Confusions):
        pairs = zip(block.class_names, block.counts, strict=True)
        rows = [(label, *(str(count) if count else "" for count in counts)) for label, counts in pairs]
        yield markdown_table(Table(("class, taken for", *block.class_names), rows))
    elif isinstance(block, Plot):
        path = f"{folder}/{name}.png"
        with colors_of(LIGHT):
            block.draw(LIGHT).savefig(root / path, dpi=160, facecolor="white", metadata={"Software": None})
        yield f"![{escape_markdown(block.description)}]({path})"
        yield escape_markdown(block.caption)
    elif isinstance(block, Examples):
        yield f"**{escape_markdown(block.title)}**"
        yield " ".join(_examples(block, root, folder, name))
    elif isinstance(block, SideBySide):
        for index, part in enumerate(block.blocks):
            yield from _parts(part, root, folder, f"{name}_{index}")


def markdown_table(block: Table) -> str:
    """The lines of a table."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (block.header, *block.rows)]
    rules = ["---" if words else "---:" for words in block.are_words[1:]]  # the first column names the row
    lines.insert(1, "|" + "|".join(["---", *rules]) + "|")
    return "\n".join(lines)


def _examples(block: Examples, root: Path, folder: str, name: str) -> Iterator[str]:
    """Small images that link to the large ones."""
    for number, example in enumerate(block.examples):
        small, large = (f"{folder}/{name}_{number}{kind}.jpg" for kind in ("", "_large"))
        scaled(example.image, THUMBNAIL).save(root / small, quality=85)
        example.image.save(root / large, quality=85)
        caption = escape_markdown(f"{example.name}, {example.caption}")
        yield f"[![{caption}]({small})]({large}) {caption}"


def _cell(cell: Cell) -> str:
    return (
        escape_markdown(cell) if isinstance(cell, str) else f"{escape_markdown(cell[0])} ({escape_markdown(cell[1])})"
    )


def escape_markdown(text: str) -> str:
    """Text on one line, in which nothing is taken for Markdown or HTML, and nothing hides or turns the direction."""
    text = _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))
    return _LIST.sub(r"\1\\\2", text)
