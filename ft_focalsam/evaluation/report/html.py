"""A report as one HTML file: nothing from outside, light and dark, wide and narrow, readable without scripts."""

import base64
import hashlib
from collections.abc import Callable, Iterable
from html import escape as escape_html
from pathlib import Path

from ...base.errors import printable
from .blocks import Block, Confusions, Examples, Facts, Footer, Heading, Plot, SideBySide, Table, Text, Warnings
from .formats import Cell, format_percent
from .images import THUMBNAIL, image_uri, scaled
from .plots import DARK, LIGHT, data_uri

STYLE, SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
# Whatever a name holds, the page runs no script but its own and loads nothing.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
MOST_CLASSES_WITH_COUNTS = 20  # of a confusion matrix; with more its cells have room for a colour only


def escape(text: str) -> str:
    """Text in which nothing is taken for HTML, and nothing hides or turns the direction."""
    return escape_html(printable(text))


def to_html(blocks: Iterable[Block]) -> str:
    """The page; every text of the report is escaped."""
    blocks = list(blocks)
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    elements = [_element(block, f"part-{index}") for index, block in enumerate(blocks)]
    first = next((i for i, block in enumerate(blocks) if isinstance(block, Heading)), -1) + 1
    elements.insert(first, _navigation(blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(elements)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _element(block: Block, name: str) -> str:
    return _RENDERERS[type(block)](block, name)


def _navigation(blocks: list[Block]) -> str:
    """Links to the sections."""
    sections = [
        (f"part-{i}", block.text) for i, block in enumerate(blocks) if isinstance(block, Heading) and block.level == 2
    ]
    links = " ".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in sections)
    return f"<nav>{links}</nav>" if len(sections) > 1 else ""


def _heading(block: Heading, name: str) -> str:
    return f'<h{block.level} id="{name}">{escape(block.text)}</h{block.level}>'


def _text(block: Text, name: str) -> str:
    kind = ' class="note"' if block.is_note else ' class="lead"' if block.is_lead else ""
    return f"<p{kind}>{escape(block.text)}</p>"


def _warnings(block: Warnings, name: str) -> str:
    return '<ul class="warnings">' + "".join(f"<li>{escape(text)}</li>" for text in block.sentences) + "</ul>"


def _facts(block: Facts, name: str) -> str:
    pairs = (f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in block.pairs)
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _table(block: Table, name: str) -> str:
    kinds = [' class="words"' if words else "" for words in block.are_words]
    head = "".join(
        f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, block.header, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{_cell(name)}</th>'
        + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds[1:], cells, strict=True))
        + "</tr>"
        for name, *cells in block.rows
    )
    sortable = ' class="sortable"' if block.is_sortable else ""
    table = f"<table{sortable}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    table = f'<div class="scroll">{table}</div>'
    return table if block.fold is None else f"<details><summary>{escape(block.fold)}</summary>\n{table}\n</details>"


def _cell(cell: Cell) -> str:
    return escape(cell) if isinstance(cell, str) else f"{escape(cell[0])}<small>{escape(cell[1])}</small>"


def _confusions(block: Confusions, name: str) -> str:
    """A table whose cells are the darker the larger the share of the row's class."""
    names, has_counts = [escape(each) for each in block.class_names], len(block.counts) <= MOST_CLASSES_WITH_COUNTS
    head = "".join(f'<th scope="col"><span>{each}</span></th>' for each in names)
    rows = []
    for label, counts in enumerate(block.counts):
        cells = []
        for predicted, count in enumerate(counts):
            if not count:
                cells.append("<td></td>")
                continue
            share = count / counts.sum()
            kind = "hit" if label == predicted else "miss"
            told = f"{names[label]}, taken for {names[predicted]}: {count:,} ({format_percent(share)} %)"
            text = f"{count:,}" if has_counts else ""
            cells.append(f'<td class="{kind}" style="--share:{share:.3f}" title="{told}">{text}</td>')
        rows.append(f'<tr><th scope="row">{names[label]}</th>{"".join(cells)}</tr>')
    kind = "matrix" if has_counts else "matrix dense"
    return (
        f'<div class="scroll"><table class="{kind}">\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody>\n</table></div>"
    )


def _plot(block: Plot, name: str) -> str:
    return (
        f'<figure class="plot"><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{data_uri(block.draw, DARK)}"><img src="{data_uri(block.draw, LIGHT)}" '
        f'alt="{escape(block.description)}"></picture><figcaption>{escape(block.caption)}</figcaption></figure>'
    )


def _examples(block: Examples, name: str) -> str:
    """Small images; a click opens the large one above the page (a popover, which needs no script)."""
    title, figures = escape(block.title), []
    for number, example in enumerate(block.examples):
        place, file, caption = f"{name}-{number}", escape(example.name), escape(example.caption)
        figures.append(
            f'<figure><button type="button" class="zoom" popovertarget="{place}" aria-label="enlarge {file}">'
            f'<img src="{image_uri(scaled(example.image, THUMBNAIL))}" alt="{title}"></button>'
            f'<figcaption>{caption}<span class="file">{escape(Path(example.name).name)}</span></figcaption>'
            f'<div popover id="{place}" class="large"><img src="{image_uri(example.image)}" alt="{title}">'
            f"<p><strong>{title}</strong>, {caption}</p><p>{file}</p>"
            f'<button type="button" popovertarget="{place}" popovertargetaction="hide">Close</button></div></figure>'
        )
    return f'<h4>{title}</h4>\n<div class="examples">{"".join(figures)}</div>'


def _side_by_side(block: SideBySide, name: str) -> str:
    parts = (f"<div>{_element(part, f'{name}-{index}')}</div>" for index, part in enumerate(block.blocks))
    return f'<div class="beside">{"".join(parts)}</div>'


def _footer(block: Footer, name: str) -> str:
    return f"<footer>{escape(block.text)}</footer>"


_RENDERERS: dict[type, Callable[..., str]] = {
    Heading: _heading,
    Text: _text,
    Warnings: _warnings,
    Facts: _facts,
    Table: _table,
    Confusions: _confusions,
    Plot: _plot,
    Examples: _examples,
    SideBySide: _side_by_side,
    Footer: _footer,
}
