"""How sharp the loss of a trained model is, class by class: sharpness, Hessian, loss landscapes."""

from .agreement import change_by_group, changes_with_accuracy, rank_correlation, with_accuracy
from .ascent import Sharpness, measure_sharpness
from .class_loss import ClassLoss
from .hessian import largest_eigenvalue, standard_error, trace_probes
from .landscape import filter_normalised, line, plane, weight_norm
from .measure import MEASURES, Measurement, MeasureOptions, measure
from .page import write_analysis
from .runs import ImageOptions, RunLosses, SavedRun, read_runs

__all__ = [
    "MEASURES",
    "ClassLoss",
    "ImageOptions",
    "MeasureOptions",
    "Measurement",
    "RunLosses",
    "SavedRun",
    "Sharpness",
    "change_by_group",
    "changes_with_accuracy",
    "filter_normalised",
    "largest_eigenvalue",
    "line",
    "measure",
    "measure_sharpness",
    "plane",
    "rank_correlation",
    "read_runs",
    "standard_error",
    "trace_probes",
    "weight_norm",
    "with_accuracy",
    "write_analysis",
]
