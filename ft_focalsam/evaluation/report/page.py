"""`write_page`: the whole report of one or several runs, as HTML and as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

from ..verdict import Verdict
from .contents import report_blocks
from .html import to_html
from .markdown import write_markdown

PICTURES = "report_pictures"  # folder of what report.md shows


def write_page(
    folder: str | Path,
    verdicts: Mapping[str, Verdict],
    *,
    title: str = "How good the model is",
    pictures: Mapping[str, datasets.Dataset] | None = None,
    log_history: Sequence[Mapping] = (),
    seeds: Mapping[str, Sequence[Verdict]] | None = None,
) -> None:
    """Write report.html, one file that needs nothing else, and report.md with its pictures in report_pictures/.

    Args:
        folder (`str` or `Path`): Where to write; made where it does not exist.
        verdicts (`Mapping[str, Verdict]`): Name of a run -> what is to be said of it. Runs on the same test set are
            compared, the last of them with each of the others.
        title (`str`): Of the page.
        pictures (`Mapping[str, datasets.Dataset]`, *optional*): Name of a test set -> its pictures, column "image", in
            the order of the predictions; examples of what is confused are taken from there.
        log_history (sequence of mappings): What was logged in training, `trainer.state.log_history`.
        seeds (`Mapping`, *optional*): Name of a test set -> runs with several seeds on it.

    Raises:
        ValueError: If two runs on one test set were scored on different pictures or classes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = list(
        report_blocks(verdicts, title=title, pictures=pictures or {}, log_history=log_history, seeds=seeds or {})
    )
    (folder / "report.html").write_text(to_html(blocks), encoding="utf-8")
    write_markdown(folder / "report.md", blocks, folder=PICTURES)
