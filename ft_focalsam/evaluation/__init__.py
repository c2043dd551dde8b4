"""How good a model is on each part of a long-tailed data set, as numbers, as tables, as drawings and as a page."""

from .calibration import Calibration, calibration
from .cells import from_cell, to_cell
from .class_matching import match_classes, read_class_index, read_train_counts
from .classifiers import restrict, run_folder, saved_counts, saved_history
from .comparison import Comparison, compare, compare_verdicts, mcnemar
from .estimates import Estimate, estimate, estimate_classes
from .intervals import accuracy_interval, difference_interval
from .judge import JudgeOptions, check_classes, judge
from .metrics import METRICS, LongTailMetrics, group_means, register_metric
from .outcomes import Outcomes, Tally, predicted_classes
from .post_hoc import adjust_logits, fit_temperature
from .predictions import PREDICTIONS, Predictions, image_ids, predict
from .report import (
    MethodRuns,
    format_table,
    per_class_rows,
    plot_accuracy_by_frequency,
    verdict_rows,
    write_comparison,
    write_page,
    write_per_class_csv,
    write_report,
)
from .test_sets import TestSet, file_name, load_test_set, short_name, title_name
from .verdict import Verdict
from .views import VIEWS, register_views, view_transform

__all__ = [
    "METRICS",
    "PREDICTIONS",
    "VIEWS",
    "Calibration",
    "Comparison",
    "Estimate",
    "JudgeOptions",
    "LongTailMetrics",
    "MethodRuns",
    "Outcomes",
    "Predictions",
    "Tally",
    "TestSet",
    "Verdict",
    "accuracy_interval",
    "adjust_logits",
    "calibration",
    "check_classes",
    "compare",
    "compare_verdicts",
    "difference_interval",
    "estimate",
    "estimate_classes",
    "file_name",
    "fit_temperature",
    "format_table",
    "from_cell",
    "group_means",
    "image_ids",
    "judge",
    "load_test_set",
    "match_classes",
    "mcnemar",
    "per_class_rows",
    "plot_accuracy_by_frequency",
    "predict",
    "predicted_classes",
    "read_class_index",
    "read_train_counts",
    "register_metric",
    "register_views",
    "restrict",
    "run_folder",
    "saved_counts",
    "saved_history",
    "short_name",
    "title_name",
    "to_cell",
    "verdict_rows",
    "view_transform",
    "write_comparison",
    "write_page",
    "write_per_class_csv",
    "write_report",
]
