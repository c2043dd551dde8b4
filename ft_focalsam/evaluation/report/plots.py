"""Drawings of the report: calibration and training curves (class frequency is in `frequency.py`), in two looks."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..intervals import accuracy_interval
from ..sample_results import BINS, ClassCounts


@dataclass(frozen=True)
class Look:
    """Colours of a drawing.

    Args:
        ink (`str`): Text.
        faint (`str`): Axes, and what joins or guides.
        grid (`str`): Grid lines.
        ground (`str`): What open markers are filled with.
        accent, second (`str`): Of the bars and curves.
        groups (`dict[str, str]`): Of many, medium and few.
    """

    ink: str
    faint: str
    grid: str
    ground: str
    accent: str
    second: str
    groups: Mapping[str, str]


LIGHT = Look(
    ink="#24292f",
    faint="#b8bec6",
    grid="#e6e9ed",
    ground="#ffffff",
    accent="#1f6fb4",
    second="#d1495b",
    groups={"many": "#1f6fb4", "medium": "#2a9d6f", "few": "#d1495b"},
)
DARK = Look(
    ink="#dfe3e8",
    faint="#626a75",
    grid="#323840",
    ground="#15181c",
    accent="#6cb2ee",
    second="#f2808d",
    groups={"many": "#6cb2ee", "medium": "#5fcf9f", "few": "#f2808d"},
)

LEGENDS = ((3, 9), (2, 9), (1, 9), (1, 8), (1, 7))  # (columns, size of the letters), the best one first

# A drawing is a function from a look to a figure.
Drawing = Callable[[Look], Figure]


@contextmanager
def colors_of(look: Look) -> Iterator[None]:
    """Draw and save in the colours of a look; names with a dollar sign are no formulas."""
    with rc_context(
        {
            "text.color": look.ink,
            "xtick.color": look.ink,
            "ytick.color": look.ink,
            "axes.labelcolor": look.ink,
            "axes.edgecolor": look.faint,
            "text.parse_math": False,
            "svg.hashsalt": "ft_focalsam",
            "svg.fonttype": "path",
        }
    ):
        yield


def new_axes(look: Look, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure of (width, height) in inches, and axes with a grid and without a frame."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    axes.grid(color=look.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend below the axes, in columns and letters that fit. The figure grows by it, and the axes keep their size.

    Args:
        figure (`Figure`): With all but the legend.
        handles (sequence of `Artist`): What to name, each with a label.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns, letters in LEGENDS:
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=letters
        )
        extent = legend.get_window_extent(renderer)
        if extent.width <= figure.bbox.width or (columns, letters) == LEGENDS[-1]:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + extent.height / figure.dpi)


def data_uri(draw: Drawing, look: Look) -> str:
    """A drawing without ground as SVG inside a data URI, the same bytes for the same drawing."""
    file = io.BytesIO()
    with colors_of(look):
        draw(look).savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def reliability(look: Look, tally: ClassCounts) -> Figure:
    """Reliability diagram: accuracy over confidence in 15 bins, and how many images each holds (Guo et al., 2017,
    https://arxiv.org/abs/1706.04599, figure 1).

    Raises:
        ValueError: If the counts have no confidence, as those of predicted classes.
    """
    if tally.bins is None:
        raise ValueError("The diagram needs confidences, but the counts are of predicted classes; give logits.")
    filled = tally.bins[0] > 0
    images, confidences, hits = (values[filled] for values in tally.bins)
    figure, axes = new_axes(look, (5.2, 4.4))
    left, width = 100 * np.arange(BINS)[filled] / BINS, 100 / BINS
    accuracy, confidence = 100 * hits / images, 100 * confidences / images
    axes.plot([0, 100], [0, 100], color=look.ink, linewidth=1, linestyle=(0, (4, 3)), zorder=2.5)
    axes.bar(left, accuracy, width, align="edge", color=look.accent, alpha=0.85, edgecolor=look.ground, zorder=2)
    low, high = np.minimum(accuracy, confidence), np.maximum(accuracy, confidence)
    axes.vlines(confidence, low, high, color=look.second, linewidth=2, zorder=3)
    axes.scatter(confidence, confidence, s=16, color=look.second, zorder=4)
    lower, upper = (100 * end for end in accuracy_interval(accuracy / 100, images))
    axes.vlines(left + width / 2, lower, upper, color=look.ink, linewidth=1, alpha=0.6, zorder=2.2)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)")
    share = axes.inset_axes((0, 1.06, 1, 0.16))
    share.bar(left, 100 * images / images.sum(), width, align="edge", color=look.faint, edgecolor=look.ground)
    share.set(xlim=(0, 100), xticks=[], ylabel="images (%)", facecolor="none")
    share.yaxis.set_major_locator(MaxNLocator(2))
    share.yaxis.label.set_fontsize(8)
    share.spines[["top", "right"]].set_visible(False)
    return figure


def curve(look: Look, lines: Mapping[str, Sequence[tuple[float, float]]], ylabel: str) -> Figure:
    """What was logged over the steps of training: name -> (step, value) pairs; the first two have a colour each."""
    figure, axes = new_axes(look, (5.2, 3.4))
    styles = [(look.accent, "-"), (look.second, "-"), (look.ink, (0, (4, 2))), (look.faint, (0, (1, 1)))]
    drawn = []
    for (color, style), (name, pairs) in zip(styles, lines.items(), strict=False):
        marker = "o" if len(pairs) < 12 else None
        points = zip(*pairs, strict=True)
        drawn += axes.plot(*points, color=color, linestyle=style, marker=marker, markersize=4, label=name)
    axes.set(xlabel="optimizer step", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(lines) > 1:
        legend_below(figure, drawn)
    return figure
