"""Whether the confidence of a model is to be trusted, as a section of the report."""

from collections.abc import Iterator, Mapping

from ..calibration import Calibration
from ..calibration import calibration as calibrate
from ..eval_result import EvalResult
from .blocks import Block, Heading, Plot, Text
from .formats import format_interval, format_percent
from .plots import reliability


def calibration(runs: Mapping[str, EvalResult], level: int) -> Iterator[Block]:
    """Whether the confidence of the last run is to be trusted, and what to do about it; nothing where only its
    predicted classes were kept."""
    name, result = list(runs.items())[-1]
    if result.outcomes.confidence is None:
        return
    found, tally = calibrate(result.outcomes), result.outcomes.tally()
    low, high = found.gap_interval
    kind = "over" if found.gap > 0 else "under"
    ends = (low, high) if found.gap > 0 else (-high, -low)
    yield Heading("Calibration", level)
    yield Text(
        f"{name} is {format_percent(found.confidence)} % sure on average and right on "
        f"{format_percent(found.accuracy)} % of the images: {kind}-confident by {format_percent(abs(found.gap))} "
        f"points (95 % interval {format_interval(ends, signed=True)}). The expected calibration error (15 bins) is "
        f"{format_percent(found.error)} points; chance alone gives a calibrated model up to "
        f"{format_percent(found.error_by_chance)} on as many images."
    )
    yield Text(_calibration_advice(found, result))
    yield Plot(
        lambda look: reliability(look, tally),
        f"Reliability diagram of {name}: accuracy over confidence",
        "Bars: accuracy of the images in each bin of confidence, with 95 % intervals; dots: their mean confidence, on "
        "the diagonal.",
    )


def _calibration_advice(found: Calibration, result: EvalResult) -> str:
    is_off = found.has_gap or found.error > found.error_by_chance
    if result.is_temperature_scaled:
        applied = "A temperature that was fitted on held-out images is already applied"
        return (
            f"{applied}, and is off: hold out more with a larger --temperature_fraction." if is_off else f"{applied}."
        )
    if not is_off:
        return "Neither is more than chance would do: no correction is called for."
    what = "It is too sure of some images and too unsure of others"
    if found.has_gap:
        what = f"It is too {'sure' if found.gap > 0 else 'unsure'}"
    return (
        f"{what}: do not take its confidence for a probability as it is. ft-focalsam evaluate with "
        "--temperature_fraction 0.2 fits a temperature on a fifth of the test images and scores the others; it "
        "changes no prediction."
    )
