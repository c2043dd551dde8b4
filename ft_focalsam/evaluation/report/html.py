"""A report as one HTML file: no script, nothing from outside, light and dark, wide and narrow."""

from collections.abc import Iterable, Iterator
from html import escape as escape_html

from ...errors import printable
from .blocks import Block, Examples, Heading, Plot, Table, Text
from .pictures import picture_uri
from .plots import DARK, LIGHT, data_uri

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #24292f; --soft: #5b636d; --line: #dfe3e8;
  --stripe: #f5f7f9; --accent: #1f6fb4; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --ink: #dfe3e8; --soft: #9aa3ae; --line: #323840;
  --stripe: #1c2026; --accent: #6cb2ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 20px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 44px 0 12px; padding-top: 14px; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 28px 0 10px; overflow-wrap: anywhere; }
h4 { font-size: .95rem; margin: 20px 0 8px; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 10px 0; max-width: 75ch; overflow-wrap: anywhere; }
p.note, figcaption { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: 6px 14px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; min-width: 5rem; max-width: 18rem; overflow-wrap: anywhere; }
td.words, th.words { text-align: left; }
th:first-child { text-align: left; padding-left: 2px; font-weight: 500; min-width: 7.5rem; position: sticky; left: 0;
  background: var(--ground); }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line); font-size: .85rem; color: var(--soft); }
tbody tr:hover > * { background: var(--stripe); }
td small { color: var(--soft); font-size: .78rem; white-space: nowrap; margin-left: .8em; }
summary { cursor: pointer; color: var(--accent); margin: 12px 0; }
.plots { display: flex; flex-wrap: wrap; gap: 12px 28px; align-items: flex-start; }
figure { margin: 8px 0; flex: 0 1 auto; max-width: 100%; }
figure.plot img { display: block; max-width: 100%; height: auto; }
figcaption { max-width: 60ch; overflow-wrap: anywhere; }
.examples { display: flex; flex-wrap: wrap; gap: 14px; }
.examples figure { margin: 0; width: 112px; }
.examples img { display: block; max-width: 100%; border-radius: 4px; }
@media (max-width: 620px) { main { padding: 18px 14px 48px; } th, td { padding: 6px 9px; } h1 { font-size: 1.4rem; }
  td small { display: block; margin-left: 0; } .examples figure { width: calc(25% - 11px); } }
""".strip()


def escape(text: str) -> str:
    """Text in which nothing is taken for HTML, and nothing hides or turns the direction."""
    return escape_html(printable(text))


def to_html(blocks: Iterable[Block]) -> str:
    """The page; every text of the report is escaped."""
    blocks = list(blocks)
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(_elements(blocks))
        + "\n</main>\n</body>\n</html>\n"
    )


def _elements(blocks: list[Block]) -> Iterator[str]:
    """The elements of the page; drawings that follow each other stand side by side where there is room."""
    for index, block in enumerate(blocks):
        if not isinstance(block, Plot):
            yield _RENDERERS[type(block)](block)
            continue
        if index == 0 or not isinstance(blocks[index - 1], Plot):
            yield '<div class="plots">'
        yield _plot(block)
        if index + 1 == len(blocks) or not isinstance(blocks[index + 1], Plot):
            yield "</div>"


def _heading(block: Heading) -> str:
    return f"<h{block.level}>{escape(block.text)}</h{block.level}>"


def _text(block: Text) -> str:
    return f'<p class="note">{escape(block.text)}</p>' if block.is_note else f"<p>{escape(block.text)}</p>"


def _table(block: Table) -> str:
    kinds = [' class="words"' if words else "" for words in _are_words(block)]
    head = "".join(
        f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, block.header, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds[1:], cells, strict=True))
        + "</tr>"
        for name, *cells in block.rows
    )
    table = f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    return table if block.fold is None else f"<details><summary>{escape(block.fold)}</summary>\n{table}\n</details>"


def _are_words(block: Table) -> list[bool]:
    """Of each column, whether its cells are words and not numbers; the first names the row."""
    return [any(isinstance(cell, str) and cell[:1].isalpha() for cell in column) for column in zip(*block.rows)]  # noqa: B905, rows are of one length


def _cell(cell: str | tuple[str, str]) -> str:
    return escape(cell) if isinstance(cell, str) else f"{escape(cell[0])}<small>{escape(cell[1])}</small>"


def _plot(block: Plot) -> str:
    return (
        f'<figure class="plot"><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{data_uri(block.draw, DARK)}"><img src="{data_uri(block.draw, LIGHT)}" '
        f'alt="{escape(block.description)}"></picture><figcaption>{escape(block.caption)}</figcaption></figure>'
    )


def _examples(block: Examples) -> str:
    figures = "".join(
        f'<figure><img src="{picture_uri(picture)}" alt="{escape(block.title)}"><figcaption>{escape(caption)}'
        "</figcaption></figure>"
        for picture, caption in block.pictures
    )
    return f'<h4>{escape(block.title)}</h4>\n<div class="examples">{figures}</div>'


_RENDERERS = {Heading: _heading, Text: _text, Table: _table, Examples: _examples}
