"""What a run leaves behind: tables, drawings and a page to read."""

from .frequency import plot_accuracy_by_frequency
from .methods import MethodRuns, write_comparison
from .page import write_page
from .tables import format_table, per_class_rows, result_rows, write_per_class_csv, write_report, write_results

__all__ = [
    "MethodRuns",
    "format_table",
    "per_class_rows",
    "plot_accuracy_by_frequency",
    "result_rows",
    "write_comparison",
    "write_page",
    "write_per_class_csv",
    "write_report",
    "write_results",
]
