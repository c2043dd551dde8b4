"""How good a model is on each part of a long-tailed data set, as numbers, as tables and as a drawing."""

from .metrics import LongTailMetrics, group_means, predicted_classes
from .report import format_table, per_class_rows, plot_accuracy_by_frequency, write_per_class_csv, write_report

__all__ = [
    "LongTailMetrics",
    "format_table",
    "group_means",
    "per_class_rows",
    "plot_accuracy_by_frequency",
    "predicted_classes",
    "write_per_class_csv",
    "write_report",
]
