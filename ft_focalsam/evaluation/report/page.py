"""`write_page`: the whole report of one or several runs; `write_blocks`: any report, as HTML and as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import datasets

from ...base.versions import library_versions
from ..multi_label_result import Result
from .blocks import Block, Footer
from .contents import Report, report_blocks
from .html import to_html
from .markdown import write_markdown
from .settings import format_date, format_versions


def write_page(
    folder: str | Path,
    results: Mapping[str, Result],
    *,
    title: str = "How good the model is",
    images: Mapping[str, datasets.Dataset] | None = None,
    log_history: Sequence[Mapping] = (),
    seeds: Mapping[str, Sequence[Result]] | None = None,
    run: Mapping | None = None,
    written: datetime | None = None,
) -> None:
    """Write report.html, one file that needs nothing else, and report.md with its images in report_images/.

    Args:
        folder (`str` or `Path`): Where to write; made where it does not exist.
        results (`Mapping[str, Result]`): Name of a run -> what is to be said of it. Runs on the same test set are
            compared, the last of them with each of the others.
        title (`str`): Of the page.
        images (`Mapping[str, datasets.Dataset]`, *optional*): Name of a test set -> its images, column "image", in
            the order of the predictions; examples of what is confused are taken from there.
        log_history (sequence of mappings): What was logged in training, `trainer.state.log_history`.
        seeds (`Mapping`, *optional*): Name of a test set -> runs with several seeds on it.
        run (mapping, *optional*): How the model was trained, as [`~ft_focalsam.hub.read_run`] gives it.
        written (`datetime`, *optional*): When the report was written; now by default.

    Raises:
        ValueError: If two runs on one test set were scored on different images or classes, or one of them on one class
            an image and the other on several.
    """
    report = Report(results, title, images or {}, log_history, seeds or {}, run or {})
    write_blocks(folder, "report", report_blocks(report), written=written)


def write_blocks(folder: str | Path, name: str, blocks: Iterable[Block], *, written: datetime | None = None) -> None:
    """Write NAME.html, and NAME.md with its images in NAME_images/, with date and versions in the last line.

    Args:
        folder (`str` or `Path`): Where to write; made where it does not exist.
        name (`str`): Of the files.
        blocks (iterable of blocks): What the report says.
        written (`datetime`, *optional*): As in [`write_page`].
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    date = format_date(written or datetime.now().astimezone())
    blocks = [*blocks, Footer(f"Written {date} with {format_versions(library_versions())}.")]
    (folder / f"{name}.html").write_text(to_html(blocks), encoding="utf-8")
    write_markdown(folder / f"{name}.md", blocks, folder=f"{name}_images")
