"""How a report writes its numbers: what metrics are called, percent, intervals, values over seeds."""

from collections.abc import Iterable

from ..estimates import FEWEST_SEEDS, Estimate

TITLES = {
    "mAP": "mAP",
    "accuracy": "top-1",
    "top5_accuracy": "top-5",
    "mean_class_accuracy": "mean per class",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "worst_class_accuracy": "worst class",
    "harmonic_mean_accuracy": "harmonic mean",
    "geometric_mean_accuracy": "geometric mean",
    "macro_f1": "macro-F1",
    "calibration_error": "calibration error",
}

Cell = str | tuple[str, str]  # with a second line


def metric_titles(metrics: Iterable[Iterable[str]]) -> dict[str, str]:
    """Names and titles of the metrics that any of the runs has, in the order of a report."""
    present = {name for each in metrics for name in each}
    return {name: title for name, title in TITLES.items() if name in present}


def format_percent(value: float, *, signed: bool = False) -> str:
    """In percent, with a true minus, and no sign before a zero."""
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def format_interval(ends: Iterable[float], *, signed: bool = False) -> str:
    """Both ends in percent."""
    return " to ".join(format_percent(end, signed=signed) for end in ends)


def percent_cell(value: float | None, interval: Iterable[float] | None = None, *, signed: bool = False) -> Cell:
    """A value in percent, with its interval below it."""
    if value is None:
        return "–"
    text = format_percent(value, signed=signed)
    return text if interval is None else (text, format_interval(interval, signed=signed))


def estimate_cell(found: Estimate | None, *, signed: bool = False) -> Cell:
    """Mean and deviation, or mean and single runs, with the interval below."""
    if found is None:
        return "–"
    text = format_percent(found.mean, signed=signed)
    if found.deviation is not None:
        text += f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{100 * found.deviation:.1f}"
    elif len(found.values) > 1:
        values = (format_percent(value, signed=signed) for value in found.values)
        text += " (" + ",\N{NO-BREAK SPACE}".join(values) + ")"
    return text if found.interval is None else (text, format_interval(found.interval, signed=signed))


def count_cell(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def format_p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def plural(count: int, noun: str) -> str:
    """ "1 class", "1,200 images"."""
    if count != 1:
        noun += "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}"


def seeds_title(num_seeds: int) -> str:
    """What a cell of [`estimate_cell`] shows first."""
    return "mean ± standard deviation" if num_seeds >= FEWEST_SEEDS else "mean (single runs)"


def describe_spread(num_seeds: int) -> str:
    """What the numbers over seeds are, in words, where the intervals are over seeds alone."""
    if num_seeds >= FEWEST_SEEDS:
        return (
            f"mean ± standard deviation over {num_seeds} seeds, and 95 % intervals for other trainings but not for "
            "other test images"
        )
    return "one seed" if num_seeds == 1 else "means of two seeds with the single runs behind them"


def describe_seeds(num_seeds: int) -> str:
    """What the numbers over seeds are, in words."""
    if num_seeds >= FEWEST_SEEDS:
        return (
            f"mean ± standard deviation over {num_seeds} seeds, and 95 % intervals for other test images and other "
            "trainings together"
        )
    runs = "one seed" if num_seeds == 1 else "means of two seeds with the single runs behind them"
    return (
        f"{runs}, and 95 % intervals for other test images but not for another training, which takes three seeds or "
        "more"
    )
