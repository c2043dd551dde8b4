from .average_precision import (
    MULTI_LABEL_METRICS as MULTI_LABEL_METRICS,
)
from .average_precision import (
    MultiLabelMetrics as MultiLabelMetrics,
)
from .average_precision import (
    average_precision_means as average_precision_means,
)
from .average_precision import (
    class_average_precisions as class_average_precisions,
)
from .calibration import (
    Calibration as Calibration,
)
from .calibration import (
    calibration as calibration,
)
from .cells import (
    from_cell as from_cell,
)
from .cells import (
    to_cell as to_cell,
)
from .class_matching import (
    match_classes as match_classes,
)
from .class_matching import (
    read_class_index as read_class_index,
)
from .class_matching import (
    read_train_counts as read_train_counts,
)
from .classifiers import (
    restrict as restrict,
)
from .classifiers import (
    run_folder as run_folder,
)
from .classifiers import (
    saved_counts as saved_counts,
)
from .classifiers import (
    saved_history as saved_history,
)
from .comparison import (
    Comparison as Comparison,
)
from .comparison import (
    compare as compare,
)
from .comparison import (
    compare_results as compare_results,
)
from .comparison import (
    mcnemar as mcnemar,
)
from .estimates import (
    Estimate as Estimate,
)
from .estimates import (
    estimate as estimate,
)
from .estimates import (
    estimate_classes as estimate_classes,
)
from .eval_datasets import (
    EvalDataset as EvalDataset,
)
from .eval_datasets import (
    file_name as file_name,
)
from .eval_datasets import (
    load_eval_dataset as load_eval_dataset,
)
from .eval_datasets import (
    short_name as short_name,
)
from .eval_datasets import (
    title_name as title_name,
)
from .eval_result import (
    EvalResult as EvalResult,
)
from .evaluate import (
    EvalConfig as EvalConfig,
)
from .evaluate import (
    check_classes as check_classes,
)
from .evaluate import (
    evaluate as evaluate,
)
from .intervals import (
    accuracy_interval as accuracy_interval,
)
from .intervals import (
    difference_interval as difference_interval,
)
from .metrics import (
    METRICS as METRICS,
)
from .metrics import (
    LongTailMetrics as LongTailMetrics,
)
from .metrics import (
    group_means as group_means,
)
from .metrics import (
    register_metric as register_metric,
)
from .multi_label_result import (
    MultiLabelResult as MultiLabelResult,
)
from .multi_label_result import (
    Result as Result,
)
from .multi_label_result import (
    make_result as make_result,
)
from .post_hoc import (
    adjust_logits as adjust_logits,
)
from .post_hoc import (
    fit_temperature as fit_temperature,
)
from .predictions import (
    PREDICTIONS as PREDICTIONS,
)
from .predictions import (
    Predictions as Predictions,
)
from .predictions import (
    image_ids as image_ids,
)
from .predictions import (
    predict as predict,
)
from .report import (
    MethodRuns as MethodRuns,
)
from .report import (
    format_table as format_table,
)
from .report import (
    per_class_rows as per_class_rows,
)
from .report import (
    plot_accuracy_by_frequency as plot_accuracy_by_frequency,
)
from .report import (
    result_rows as result_rows,
)
from .report import (
    write_comparison as write_comparison,
)
from .report import (
    write_page as write_page,
)
from .report import (
    write_per_class_csv as write_per_class_csv,
)
from .report import (
    write_report as write_report,
)
from .report import (
    write_results as write_results,
)
from .run_record import (
    RunRecord as RunRecord,
)
from .sample_results import (
    ClassCounts as ClassCounts,
)
from .sample_results import (
    SampleResults as SampleResults,
)
from .sample_results import (
    predicted_classes as predicted_classes,
)
from .views import (
    VIEWS as VIEWS,
)
from .views import (
    register_views as register_views,
)
from .views import (
    view_transform as view_transform,
)
