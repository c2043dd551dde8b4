"""A report as Markdown, with its drawings and pictures in a folder beside it."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import printable
from .blocks import Block, Examples, Heading, Plot, Table, Text
from .plots import LIGHT, colors_of

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
_LIST = re.compile(r"^(\d*)([-+=.)])(?= |[-=]*$)")  # begins a list, underlines a heading, or draws a line


def write_markdown(path: Path, blocks: Iterable[Block], *, folder: str) -> None:
    """Write a report.

    Args:
        path (`Path`): The Markdown file.
        blocks (iterable of blocks): The report.
        folder (`str`): Name of the folder beside it that its pictures go to.
    """
    (path.parent / folder).mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(
        part for index, block in enumerate(blocks) for part in _parts(block, path.parent, folder, index)
    )
    path.write_text(text + "\n", encoding="utf-8")


def _parts(block: Block, root: Path, folder: str, index: int) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"{'#' * block.level} {escape_markdown(block.text)}"
    elif isinstance(block, Text):
        yield escape_markdown(block.text)
    elif isinstance(block, Table):
        if block.fold is not None:
            yield escape_markdown(block.fold)
        yield markdown_table(block)
    elif isinstance(block, Plot):
        name = f"{folder}/{index:02}.png"
        with colors_of(LIGHT):
            block.draw(LIGHT).savefig(root / name, dpi=160, facecolor="white", metadata={"Software": None})
        yield f"![{escape_markdown(block.description)}]({name})"
        yield escape_markdown(block.caption)
    elif isinstance(block, Examples):
        yield f"**{escape_markdown(block.title)}**"
        yield " ".join(_pictures(block, root, folder, index))


def markdown_table(block: Table) -> str:
    """The lines of a table."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (block.header, *block.rows)]
    lines.insert(1, "|" + "|".join(["---", *["---:"] * (len(block.header) - 1)]) + "|")
    return "\n".join(lines)


def _pictures(block: Examples, root: Path, folder: str, index: int) -> Iterator[str]:
    for number, (picture, caption) in enumerate(block.pictures):
        name = f"{folder}/{index:02}_{number}.jpg"
        picture.save(root / name, quality=88)
        yield f"![{escape_markdown(caption)}]({name}) {escape_markdown(caption)}"


def _cell(cell: str | tuple[str, str]) -> str:
    return (
        escape_markdown(cell) if isinstance(cell, str) else f"{escape_markdown(cell[0])} ({escape_markdown(cell[1])})"
    )


def escape_markdown(text: str) -> str:
    """Text on one line, in which nothing is taken for Markdown or HTML, and nothing hides or turns the direction."""
    text = _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))
    return _LIST.sub(r"\1\\\2", text)
