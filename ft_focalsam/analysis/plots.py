"""Drawings of sharpness: by class frequency, against accuracy, and loss landscapes."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..base.errors import printable
from ..evaluation.report.plots import Look, legend_below, new_axes
from .landscape import offsets
from .measure import Measurement

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (4, 1, 1, 1)))
LEVELS = 9
COLOURS = "viridis"


def by_frequency(look: Look, runs: Sequence[Measurement], counts: np.ndarray, measure: str, title: str) -> Figure:
    """A measure of each class over its number of training images, both on log scales."""
    figure, axes = new_axes(look, (5.6, 4))
    axes.set(xscale="log", xlabel="training images of the class", ylabel=title)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend_below(figure, _scatter(look, axes, runs, counts, measure))
    return figure


def against_accuracy(look: Look, runs: Sequence[Measurement], measure: str, title: str) -> Figure:
    """A measure of each class over its test accuracy."""
    figure, axes = new_axes(look, (5.6, 4))
    axes.set(xlabel="test accuracy of the class (%)", ylabel=title)
    legend_below(figure, _scatter(look, axes, runs, None, measure))
    return figure


def lines(look: Look, runs: Sequence[Measurement], group: str, extent: float) -> Figure:
    """Increase of the loss of a group along one filter-normalised direction."""
    figure, axes = new_axes(look, (4.2, 3.2))
    drawn: list[Line2D] = []
    for index, run in enumerate(runs):
        values = run.line[run.measured_groups[group]].mean(axis=0)
        at = offsets(len(values), extent)
        drawn += axes.plot(
            at,
            values - values[len(values) // 2],
            color=_colour(look, index),
            linewidth=1.8,
            linestyle=_dash(index),
            label=printable(run.name),
        )
    axes.set(xlabel="offset, in norms of the filters", ylabel="increase of the loss")
    axes.set_title(_title(runs[0], group), fontsize=10)
    if len(runs) > 1:
        legend_below(figure, drawn)
    return figure


def planes(look: Look, runs: Sequence[Measurement], group: str, extent: float) -> Figure:
    """Increase of the loss of a group over two filter-normalised directions, one panel a run, with the same levels for
    all; they grow by squares, so that those of a round bowl are evenly spaced."""
    increases = []
    for run in runs:
        values = run.plane[run.measured_groups[group]].mean(axis=0)
        increases.append(values - values[len(values) // 2, len(values) // 2])
    low, high = min(map(np.min, increases)), max(map(np.max, increases))
    levels = low + ((high - low) or 1) * np.linspace(0, 1, LEVELS + 1) ** 2
    style = {"levels": levels, "cmap": COLOURS, "norm": BoundaryNorm(levels, colormaps[COLOURS].N)}
    figure = Figure(figsize=(1.2 + 2.5 * len(runs), 3.1), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, run, values in zip(panels, runs, increases, strict=True):
        at = offsets(len(values), extent)
        drawn = axes.contourf(at, at, values.T, **style)
        axes.contour(at, at, values.T, levels=levels, colors="white", linewidths=0.4)
        axes.plot(0, 0, marker="+", color="white", markersize=9)
        axes.set(aspect="equal", xlabel="first direction", xticks=(-extent, 0, extent))
        axes.set_title(printable(run.name), fontsize=9)
    panels[0].set_ylabel("second direction")
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.9, format=FuncFormatter(_short))
    bar.set_label("increase of the loss", color=look.ink)
    figure.suptitle(_title(runs[0], group), fontsize=10)
    return figure


def _scatter(
    look: Look, axes: Axes, runs: Sequence[Measurement], counts: np.ndarray | None, measure: str
) -> list[Line2D]:
    """Points in the colours of the groups, with one marker a run; gives the entries of a legend of both."""
    for index, run in enumerate(runs):
        values = run.measures[measure]
        places = 100 * run.accuracies if counts is None else counts
        for group, classes in run.groups.items():
            colour = look.groups[group]
            filled = colour if index == len(runs) - 1 else look.ground
            marker = MARKERS[index % len(MARKERS)]
            axes.scatter(places[classes], values[classes], s=34, marker=marker, facecolor=filled, edgecolor=colour)
    shown = np.concatenate([run.measures[measure] for run in runs])
    if (shown[np.isfinite(shown)] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
        axes.yaxis.set_minor_formatter(NullFormatter())
    handles = [
        Line2D([], [], color=look.groups[group], linewidth=5, label=group)
        for group in runs[0].measured_groups
        if group != "all"
    ]
    if len(runs) > 1:
        for index, run in enumerate(runs):
            filled = look.ink if index == len(runs) - 1 else "none"
            handle = Line2D(
                [],
                [],
                color=look.ink,
                linestyle="",
                marker=MARKERS[index % len(MARKERS)],
                markerfacecolor=filled,
                label=printable(run.name),
            )
            handles.append(handle)
    return handles


def _colour(look: Look, index: int) -> str:
    colours = (look.accent, look.second, look.groups["medium"], look.ink)
    return colours[index % len(colours)]


def _dash(index: int) -> str | tuple:
    """With the colour, different for 16 runs."""
    return DASHES[(index + index // len(DASHES)) % len(DASHES)]


def _short(value: float, _place: int) -> str:
    return f"{value:.2g}"


def _title(run: Measurement, group: str) -> str:
    count = len(run.measured_groups[group])
    return f"{group}, {count} class{'' if count == 1 else 'es'}"
